//! The columns of a row: one table for each kind of ring. File layout, names of the API and units follow from it.

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    pub metric: &'static str,
    pub unit: &'static str,
    pub kind: Kind,
}

/// How readings of a column are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An amount: the average, and the highest reading.
    Gauge,
    /// Events within a row: their number, and the most within one row of 10 s.
    Count,
}

/// The kinds of rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    Host,
    Cluster,
    Gpu,
}

const fn gauge(metric: &'static str, unit: &'static str) -> Column {
    Column { metric, unit, kind: Kind::Gauge }
}

const fn count(metric: &'static str) -> Column {
    Column { metric, unit: "events", kind: Kind::Count }
}

/// Another order or other names are another layout: the files are begun anew.
const HOST: &[Column] = &[
    gauge("cores.physical", "cores"),
    gauge("cores.effective", "cores"),
    gauge("cores.allocated", "cores"),
    gauge("cores.utilized", "cores"),
    gauge("memory.physical", "bytes"),
    gauge("memory.effective", "bytes"),
    gauge("memory.allocated", "bytes"),
    gauge("memory.utilized", "bytes"),
    gauge("swap.total", "bytes"),
    gauge("swap.used", "bytes"),
    gauge("disk.total", "bytes"),
    gauge("disk.used", "bytes"),
    gauge("load", "count"),
    gauge("pressure.cpu", "ratio"),
    gauge("pressure.memory", "ratio"),
    gauge("pressure.io", "ratio"),
    gauge("gpu_slots.effective", "count"),
    gauge("gpu_slots.allocated", "count"),
    gauge("sessions.reserved", "count"),
    gauge("sessions.running", "count"),
    gauge("sessions.starting", "count"),
    count("sessions.created"),
    count("sessions.ended"),
    count("sessions.failed"),
];

const CLUSTER: &[Column] = &[
    gauge("nodes.known", "count"),
    gauge("nodes.alive", "count"),
    gauge("cores.effective", "cores"),
    gauge("cores.allocated", "cores"),
    gauge("cores.utilized", "cores"),
    gauge("memory.effective", "bytes"),
    gauge("memory.allocated", "bytes"),
    gauge("memory.utilized", "bytes"),
    gauge("gpu_slots.effective", "count"),
    gauge("gpu_slots.allocated", "count"),
    gauge("sessions.running", "count"),
    gauge("sessions.starting", "count"),
    gauge("sessions.unknown", "count"),
    count("sessions.refused"),
];

const GPU: &[Column] = &[
    gauge("gpu.utilization", "ratio"),
    gauge("gpu.memory_used", "bytes"),
    gauge("gpu.memory_foreign", "bytes"),
    gauge("gpu.temperature", "celsius"),
    gauge("gpu.power", "watts"),
    gauge("gpu.slots_used", "count"),
];

/// What a query without metrics gets, of the host and of the cluster.
pub const DEFAULT_METRICS: &[&str] = &[
    "cores.utilized",
    "cores.allocated",
    "cores.effective",
    "memory.utilized",
    "memory.allocated",
    "memory.effective",
];

impl Table {
    pub const fn columns(self) -> &'static [Column] {
        match self {
            Self::Host => HOST,
            Self::Cluster => CLUSTER,
            Self::Gpu => GPU,
        }
    }

    /// Bytes of a row: a power of two, so that no row straddles a sector.
    pub const fn row_bytes(self) -> usize {
        match self {
            Self::Host => 256,
            Self::Cluster => 128,
            Self::Gpu => 64,
        }
    }

    /// The place of a metric in a row.
    pub fn find(self, metric: &str) -> Option<usize> {
        self.columns().iter().position(|column| column.metric == metric)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::history::ring::OVERHEAD;

    #[test]
    fn every_column_has_a_name_of_its_own_and_fits_into_the_row() {
        for table in [Table::Host, Table::Cluster, Table::Gpu] {
            let names: BTreeSet<&str> = table.columns().iter().map(|column| column.metric).collect();
            assert_eq!(names.len(), table.columns().len());
            assert!(OVERHEAD + 8 * names.len() <= table.row_bytes(), "{table:?}");
            assert!(512 % table.row_bytes() == 0);
        }
    }

    #[test]
    fn the_default_metrics_exist_for_the_host_and_the_cluster() {
        for metric in DEFAULT_METRICS {
            assert!(Table::Host.find(metric).is_some() && Table::Cluster.find(metric).is_some(), "{metric}");
        }
        assert_eq!(Table::Gpu.find("cores.utilized"), None);
    }
}
