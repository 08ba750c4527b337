//! Admission and release in the ledger, compared with a bare loop of the same arithmetic.
//!
//! `cargo bench --bench ledger`. One item is one session admitted and released.

use std::hint::black_box;

use divan::{Bencher, counter::ItemsCount};
use ostler::ledger::gpus::Offered;
use ostler::ledger::{Capacity, Ledger, Request};
use ostler::types::{Bytes, Cores, GpuSharing, GpuState, NVIDIA_CLASS, Name, Resources, SessionId, User};

/// Sessions that hold a reservation while one more is admitted and released.
const HELD: [usize; 3] = [0, 100, 1000];
/// Users that the held sessions belong to.
const USERS: usize = 50;
const GPUS: u32 = 8;
/// Room for every session of [`HELD`] and one more.
const SLOTS_PER_GPU: u32 = 256;

fn main() {
    divan::main();
}

#[divan::bench(args = HELD)]
fn admit_and_release(bencher: Bencher<'_, '_>, held: usize) {
    measure(bencher, held, 0);
}

#[divan::bench(args = HELD)]
fn admit_and_release_with_a_gpu(bencher: Bencher<'_, '_>, held: usize) {
    measure(bencher, held, 1);
}

/// Only what admission compares and adds: no map, no text, no heap.
#[divan::bench]
fn bare_arithmetic(bencher: Bencher<'_, '_>) {
    let (physical, effective) = (host(), offered());
    let mut allocated = Resources::ZERO;
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        let request = black_box(request(0));
        let sum = allocated.saturating_add(request);
        if request.exceeds(black_box(&physical)).is_none() && sum.exceeds(black_box(&effective)).is_none() {
            allocated = black_box(sum);
        }
        allocated = black_box(allocated.saturating_sub(request));
    });
}

fn asks(user: &User, gpus: u32) -> Request<'_> {
    let resources = black_box(request(gpus));
    Request { user, resources, gpu_memory: None, gpu_class: NVIDIA_CLASS, same_gpus: None }
}

fn measure(bencher: Bencher<'_, '_>, held: usize, gpus: u32) {
    let device = |index| Offered {
        uuid: format!("GPU-{index}"),
        class: NVIDIA_CLASS.to_owned(),
        state: GpuState::Ok,
        slots: SLOTS_PER_GPU,
        memory: None,
    };
    let devices: Vec<Offered> = (0..GPUS).map(device).collect();
    let capacity = Capacity {
        physical: host(),
        effective: offered(),
        gpus: &devices,
        gpu_sharing: GpuSharing::Any,
        gpus_withheld: None,
    };
    let mut ledger = Ledger::default();
    for n in 0..held {
        let admitted = ledger.admit(&session(n), asks(&user(n % USERS), gpus), &capacity);
        admitted.expect("there is room for every held session");
    }
    let (session, user) = (session(held), user(held % USERS));
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        let admitted = ledger.admit(black_box(&session), asks(&user, gpus), &capacity);
        black_box(admitted.expect("there is room for one more"));
        ledger.release(black_box(&session))
    });
}

const fn host() -> Resources {
    Resources::new(Cores::whole(64), Bytes::gib(256), GPUS)
}

/// Overridden, so that all held sessions fit.
const fn offered() -> Resources {
    Resources::new(Cores::whole(4096), Bytes::gib(4096), GPUS * SLOTS_PER_GPU)
}

const fn request(gpus: u32) -> Resources {
    Resources::new(Cores::whole(2), Bytes::gib(2), gpus)
}

fn session(n: usize) -> SessionId {
    let cluster: Name = "bench".parse().expect("a good name");
    SessionId::of_key(&cluster, &n.to_string())
}

fn user(n: usize) -> User {
    format!("user-{n}").parse().expect("a good user")
}
