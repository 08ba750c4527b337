//! An NVML library whose devices a test changes while a program uses them: `tests/nvml`, built once.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

#[allow(dead_code)] // the library reads what the tests write
#[path = "../../nvml/src/machine.rs"]
mod machine;

pub(crate) use machine::{FOREVER, Gpu, List, Machine, Process, code};

/// The version of the driver and of the library, unless a test changes one.
pub(crate) const VERSION: &str = "580.65.06";
/// What programs open: a link to the file with the version.
const LINK: &str = "libnvidia-ml.so.1";

/// The library in a directory of its own, and the machine that it shows.
pub(crate) struct Fixture {
    directory: tempfile::TempDir,
    machine: Machine,
}

impl Fixture {
    /// A machine with this many GPUs, all different and all in order.
    pub(crate) fn new(gpus: u32) -> Self {
        let gpus = (0..gpus).map(Gpu::numbered).collect();
        let machine = Machine { driver: VERSION.to_owned(), cuda: 13_000, gpus, ..Machine::default() };
        let fixture = Self { directory: tempfile::tempdir().unwrap(), machine };
        fixture.write();
        fixture.install(VERSION, &[]);
        fixture
    }

    /// The GPU of this index.
    pub(crate) fn gpu(&self, index: usize) -> &Gpu {
        &self.machine.gpus[index]
    }

    /// Changes the machine. The next call of the library sees it.
    pub(crate) fn set(&mut self, change: impl FnOnce(&mut Machine)) {
        change(&mut self.machine);
        self.write();
    }

    /// The library, as `gpu.nvml_library` names it.
    pub(crate) fn library(&self) -> PathBuf {
        self.path(LINK)
    }

    /// Installs the library as this version, without these symbols, as a package does: programs that run keep the file
    /// that they opened.
    pub(crate) fn install(&self, version: &str, without: &[&str]) {
        let mut bytes = fs::read(built()).unwrap();
        without.iter().for_each(|symbol| rename(&mut bytes, symbol));
        let file = self.path(&format!("libnvidia-ml.so.{version}"));
        let (new, link) = (self.path("new"), self.path("link"));
        fs::write(&new, bytes).unwrap();
        fs::rename(&new, &file).unwrap();
        symlink(&file, &link).unwrap();
        fs::rename(&link, self.library()).unwrap();
    }

    /// Writes a file of the `/proc` and `/sys` that the children of [`Self::program`] see.
    pub(crate) fn root(&self, path: &str, content: &str) {
        let path = self.path("root").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// ostler, with a `/proc` and a `/sys` of the test's for the child that asks NVML.
    pub(crate) fn program(&self) -> PathBuf {
        let path = self.path("program");
        let (ostler, root) = (env!("CARGO_BIN_EXE_ostler"), self.path("root"));
        fs::write(&path, format!("#!/bin/sh\nexec {ostler} \"$1\" \"$2\" {}\n", root.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self) {
        let new = self.path("machine.new");
        fs::write(&new, self.machine.to_text()).unwrap();
        fs::rename(&new, self.path("machine")).unwrap();
    }
}

/// The library. The compiler of the tests builds it, in a directory of its own.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nvml/Cargo.toml");
        let target = concat!(env!("CARGO_TARGET_TMPDIR"), "/nvml");
        let arguments =
            ["build", "--quiet", "--offline", "--locked", "--manifest-path", manifest, "--target-dir", target];
        let output = Command::new(env!("CARGO")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Path::new(target).join("debug/libnvml.so")
    })
}

/// Changes the name of a symbol, so that the library has none of that name.
fn rename(library: &mut [u8], symbol: &str) {
    let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
    let places: Vec<usize> = (0..library.len()).filter(|at| library[*at..].starts_with(&name)).collect();
    assert!(!places.is_empty(), "the library has no symbol {symbol}");
    places.into_iter().for_each(|at| library[at + 1] = b'x');
}
