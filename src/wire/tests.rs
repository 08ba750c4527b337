//! The bytes of every message: pinned, and damaged.

use std::fmt::Write;
use std::sync::LazyLock;

use data_encoding::HEXLOWER;
use proptest::prelude::*;
use proptest::sample::Index;

use super::fixture::damage::{damaged, damages};
use super::fixture::{Sample, actors, samples};
use super::message::{Undrain, read_as_every_answer};
use super::{Envelope, Format, Request};
use crate::net::Hello;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/wire-v1.txt");

/// The bytes of every message.
static MESSAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| samples().into_iter().map(|sample| sample.bytes).collect());

/// One line a message: its name, its bytes.
fn written(samples: &[Sample]) -> String {
    samples.iter().fold(String::new(), |mut text, sample| {
        writeln!(text, "{} {}", sample.name, HEXLOWER.encode(&sample.bytes)).unwrap();
        text
    })
}

/// Nodes of one protocol version understand each other, whichever release they are of.
#[test]
fn every_message_has_the_bytes_it_always_had_and_they_are_read_as_it() {
    let samples = samples();
    let now = written(&samples);
    if std::env::var_os("OSTLER_REWRITE").is_some() {
        std::fs::write(GOLDEN, &now).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap();
    for (now, golden) in now.lines().zip(golden.lines()) {
        assert_eq!(now, golden, "OSTLER_REWRITE=1 takes it as it is now");
    }
    assert_eq!(now.lines().count(), golden.lines().count(), "OSTLER_REWRITE=1 takes them as they are now");
    for (sample, line) in samples.iter().zip(golden.lines()) {
        let (_, bytes) = line.split_once(' ').unwrap();
        assert!((sample.is)(&HEXLOWER.decode(bytes.as_bytes()).unwrap()), "{}", sample.name);
    }
}

#[test]
fn a_message_that_is_cut_short_or_goes_on_is_not_one() {
    for sample in samples() {
        for end in 0..sample.bytes.len() {
            assert!(!(sample.is)(&sample.bytes[..end]), "{} up to {end}", sample.name);
        }
        for more in [0, 1, u8::MAX] {
            assert!(!(sample.is)(&[&sample.bytes[..], &[more]].concat()), "{} and {more}", sample.name);
        }
    }
}

/// Reads bytes as everything that a peer may send.
fn read(bytes: &[u8]) {
    let _ = Format::Postcard.decode::<Hello>(bytes);
    if let Ok(Envelope { by, request }) = Envelope::decode(bytes) {
        let again = request.encode(by.as_ref()).unwrap();
        assert!(Envelope::decode(&again).is_ok());
        let _ = (request.name(), request.asker(), request.answered_by(), request.ballot());
    }
    read_as_every_answer(bytes);
}

proptest! {
    #[test]
    fn no_bytes_harm_whoever_reads_them(message: Index, other: Index, damages in damages()) {
        let [message, other] = [message, other].map(|index| index.get(MESSAGES.as_slice()));
        read(&damaged(message, other, &damages));
    }
}

#[test]
fn an_envelope_brings_the_call_and_its_actor() {
    for sample in samples().iter().filter(|sample| sample.name.contains(".request.") || sample.name.contains("Actor")) {
        let envelope = Envelope::decode(&sample.bytes).unwrap();
        assert_eq!(envelope.request.encode(envelope.by.as_ref()).unwrap(), sample.bytes, "{}", sample.name);
    }
    for actor in actors() {
        let bytes = Envelope::encode(Some(&actor), &Undrain).unwrap();
        assert_eq!(Envelope::decode(&bytes), Ok(Envelope { by: Some(actor), request: Request::Undrain(Undrain) }));
    }
    let bytes = Envelope::encode(None, &Undrain).unwrap();
    assert_eq!(Envelope::decode(&bytes), Ok(Envelope { by: None, request: Request::Undrain(Undrain) }));
}
