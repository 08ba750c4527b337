//! The agent's own process, under the names that all Prometheus clients use.

use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

use super::{Registry, Source};

/// Read from `/proc` at each scrape.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process;

impl Source for Process {
    fn register(&self, registry: &mut Registry<'_>) {
        let Ok(me) = sysinfo::get_current_pid() else { return };
        let Ok(mut system) = System::new() else { return };
        let kind = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[me]), false, kind);
        let Some(process) = system.process(me) else { return };
        registry.gauge("process_resident_memory_bytes", "Resident memory of the agent", process.memory() as f64);
        registry.gauge("process_virtual_memory_bytes", "Virtual memory of the agent", process.virtual_memory() as f64);
        registry.gauge("process_start_time_seconds", "When the agent started, since 1970", process.start_time() as f64);
        if let Some(open) = process.open_files() {
            registry.gauge("process_open_fds", "Files and sockets that the agent has open", open as f64);
        }
        if let Some(limit) = process.open_files_limit() {
            registry.gauge("process_max_fds", "Files and sockets that the agent may have open", limit as f64);
        }
        let seconds = process.accumulated_cpu_time() as f64 / 1000.0;
        registry.counted("process_cpu_seconds", "CPU time of the agent", seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::scrape;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn this_process_is_described() {
        let text = scrape(&Process);
        let figure = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse::<f64>().unwrap()
        };
        assert!(figure("process_resident_memory_bytes") > 1e6);
        assert!(figure("process_virtual_memory_bytes") > figure("process_resident_memory_bytes"));
        assert!(figure("process_open_fds") > 2.0 && figure("process_open_fds") < figure("process_max_fds"));
        assert!(figure("process_cpu_seconds_total") >= 0.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let started = figure("process_start_time_seconds");
        assert!((now - 86400.0..now + 2.0).contains(&started), "{started}");
    }
}
