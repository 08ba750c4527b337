//! Runs the command line, or the internal subcommand that the arguments name.

use std::path::Path;
use std::process::ExitCode;

use ostler::cli::demo::{keeper, page};
use ostler::gpu::probe::child as gpu_probe;
use ostler::runtime::process::shim;

fn main() -> ExitCode {
    // Internal subcommands are not part of the command line: they have no log and no flags.
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [subcommand, directory] if subcommand == "shim" => shim::main(Path::new(directory)),
        [subcommand, paths @ ..] if subcommand == gpu_probe::SUBCOMMAND => {
            gpu_probe::main(paths.first().map(Path::new), paths.get(1).map(Path::new))
        }
        [subcommand, _] if subcommand == keeper::SUBCOMMAND => keeper::main(),
        [subcommand] if subcommand == page::SUBCOMMAND => page::main(),
        _ => ostler::cli::main(),
    }
}
