//! Tests of the bytes of every message, pinned and damaged.

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

/// One line for each message: its name and its bytes.
fn written(samples: &[Sample]) -> String {
    samples.iter().fold(String::new(), |mut text, sample| {
        writeln!(text, "{} {}", sample.name, HEXLOWER.encode(&sample.bytes)).unwrap();
        text
    })
}

/// Nodes of one protocol version understand each other across releases.
#[test]
fn the_bytes_of_every_message_are_pinned_and_decode_to_it() {
    let samples = samples();
    let now = written(&samples);
    if std::env::var_os("OSTLER_REWRITE").is_some() {
        std::fs::write(GOLDEN, &now).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap();
    for (now, golden) in now.lines().zip(golden.lines()) {
        assert_eq!(now, golden, "OSTLER_REWRITE=1 rewrites the golden file");
    }
    assert_eq!(now.lines().count(), golden.lines().count(), "OSTLER_REWRITE=1 rewrites the golden file");
    for (sample, line) in samples.iter().zip(golden.lines()) {
        let (_, bytes) = line.split_once(' ').unwrap();
        assert!((sample.is)(&HEXLOWER.decode(bytes.as_bytes()).unwrap()), "{}", sample.name);
    }
}

#[test]
fn a_message_with_missing_or_extra_bytes_is_malformed() {
    for sample in samples() {
        for end in 0..sample.bytes.len() {
            assert!(!(sample.is)(&sample.bytes[..end]), "{} up to {end}", sample.name);
        }
        for more in [0, 1, u8::MAX] {
            assert!(!(sample.is)(&[&sample.bytes[..], &[more]].concat()), "{} and {more}", sample.name);
        }
    }
}

/// Decodes bytes as every message that a peer may send.
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
    fn decoding_damaged_messages_never_panics(message: Index, other: Index, damages in damages()) {
        let [message, other] = [message, other].map(|index| index.get(MESSAGES.as_slice()));
        read(&damaged(message, other, &damages));
    }
}

#[test]
fn an_envelope_carries_the_call_and_its_actor() {
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
