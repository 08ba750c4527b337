//! Decodes arbitrary bytes as a message of gossip, both as they are and compressed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ostler::net::gossip;

fuzz_target!(|bytes: &[u8]| {
    gossip::decode(bytes);
    if let Ok(compressed) = zstd::bulk::compress(bytes, 1) {
        gossip::decode(&compressed);
    }
});
