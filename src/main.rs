//! Arguments in, exit code out.

use std::path::Path;
use std::process::ExitCode;

use ostler::cli::demo::{keeper, page};
use ostler::runtime::process::shim;

fn main() -> ExitCode {
    // Before anything else: what is not for people has no log, and no arguments that people would give.
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [subcommand, directory] if subcommand == "shim" => shim::main(Path::new(directory)),
        [subcommand, _] if subcommand == keeper::SUBCOMMAND => keeper::main(),
        [subcommand] if subcommand == page::SUBCOMMAND => page::main(),
        _ => ostler::cli::main(),
    }
}
