//! The processes on a device.

use std::fs;
use std::process::Command;

use ostler::gpu::Process;
use ostler::gpu::answer::Listed;
use ostler::types::Bytes;

use super::{GIB, pids, process, processes, start, start_in_root, uuid};
use crate::support::nvml::{Fixture, List, code};

#[tokio::test]
async fn processes_of_all_lists_are_merged_and_say_whose_they_are() {
    let mut user = Command::new("sleep").arg("1000").env("OSTLER_SESSION", "sessionsession").spawn().unwrap();
    let mut fixture = Fixture::new(2);
    let pid = user.id();
    // No such process: ids end far below it.
    let gone = u32::MAX - 1;
    fixture.set(|machine| {
        machine.gpus[0].processes = vec![
            process(pid, List::Compute, Some(GIB)),
            process(pid, List::Graphics, Some(GIB)),
            process(gone, List::Mps, None),
        ];
    });
    let listed = processes(&mut start(&fixture)).await;
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    user.kill().unwrap();
    user.wait().unwrap();
    let list = &listed[&uuid(0)].as_ref().unwrap().list;
    let [known, unknown] = &list[..] else { panic!("{list:?}") };
    assert_eq!((known.pid, &*known.command, known.memory), (pid, "sleep", Some(Bytes::new(GIB))));
    assert!(known.is_of("sessionsession") && !known.is_of("sessionsession2"), "{known:?}");
    let paths = cgroups.lines().map(|line| line.splitn(3, ':').nth(2).unwrap()).filter(|path| *path != "/");
    assert!(paths.clone().all(|path| known.marks.iter().any(|mark| mark == path)), "{known:?} {cgroups}");
    let nothing = Process { pid: gone, command: String::new(), memory: None, marks: Vec::new() };
    assert_eq!(unknown, &nothing);
    assert_eq!(listed[&uuid(0)].as_ref().unwrap().memory_used, Some(Bytes::new(9 * GIB)));
    assert!(pids(&listed[&uuid(1)]).is_empty());
}

#[tokio::test]
async fn lists_that_are_not_supported_are_unknown_and_those_that_fail_are_left_out() {
    let mut fixture = Fixture::new(4);
    let calls = [
        ("nvmlDeviceGetComputeRunningProcesses_v3", code::NOT_SUPPORTED),
        ("nvmlDeviceGetGraphicsRunningProcesses_v3", code::NOT_SUPPORTED),
        ("nvmlDeviceGetGraphicsRunningProcesses_v3", code::UNKNOWN),
        ("nvmlDeviceGetComputeRunningProcesses_v3", code::GPU_IS_LOST),
    ];
    fixture.set(|machine| {
        for (gpu, (call, code)) in machine.gpus.iter_mut().zip(calls) {
            gpu.returns(call, code);
            gpu.processes.push(process(1, List::Compute, None));
        }
    });
    let listed = processes(&mut start(&fixture)).await;
    assert_eq!(listed.keys().collect::<Vec<_>>(), [&uuid(0), &uuid(1)]);
    assert_eq!(listed[&uuid(0)], None);
    assert_eq!(pids(&listed[&uuid(1)]), [1]);
}

#[tokio::test]
async fn more_processes_than_an_answer_holds_are_not_listed_in_part() {
    let mut fixture = Fixture::new(2);
    fixture.set(|machine| {
        machine.gpus[0].processes = (0..4097).map(|n| process(u32::MAX - 1 - n, List::Compute, None)).collect();
        machine.gpus[1].processes = (0..4096).map(|n| process(u32::MAX - 1 - n, List::Compute, None)).collect();
    });
    let listed = processes(&mut start(&fixture)).await;
    assert_eq!(listed.keys().collect::<Vec<_>>(), [&uuid(1)]);
    assert_eq!(pids(&listed[&uuid(1)]).len(), 4096);
}

#[tokio::test]
async fn in_a_namespace_of_process_ids_of_its_own_the_lists_are_unknown() {
    let mut fixture = Fixture::new(1);
    fixture.set(|machine| machine.gpus[0].processes.push(process(1, List::Compute, None)));
    fixture.root("proc/self/status", "NSpid:\t4711\t17\n");
    assert_eq!(processes(&mut start_in_root(&fixture)).await, Listed::from([(uuid(0), None)]));
}
