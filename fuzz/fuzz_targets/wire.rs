//! Decodes arbitrary bytes as every message that a peer may send.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ostler::net::Hello;
use ostler::wire::{Envelope, Format, message};

fuzz_target!(|bytes: &[u8]| {
    let _ = Format::Postcard.decode::<Hello>(bytes);
    if let Ok(Envelope { by, request }) = Envelope::decode(bytes) {
        request.encode(by.as_ref()).expect("what came in can be sent");
    }
    message::read_as_every_answer(bytes);
});
