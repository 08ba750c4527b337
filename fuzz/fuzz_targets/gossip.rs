//! A message of gossip, damaged where it is compressed and where it is not.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ostler::net::gossip;

fuzz_target!(|bytes: &[u8]| {
    gossip::decode(bytes);
    if let Ok(compressed) = zstd::bulk::compress(bytes, 1) {
        gossip::decode(&compressed);
    }
});
