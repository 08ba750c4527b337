//! Decodes arbitrary bytes as every message that a peer may send.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ostler::net::Hello;
use ostler::wire::{Request, codec, message};

fuzz_target!(|bytes: &[u8]| {
    let _ = codec::decode::<Hello>(bytes);
    if let Ok(request) = codec::decode::<Request>(bytes) {
        codec::encode(&request).expect("a decoded request can be encoded");
    }
    message::read_as_every_answer(bytes);
});
