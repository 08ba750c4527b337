//! The child: `ostler gpu-probe [LIBRARY [ROOT]]`. Reads one question a line and writes one answer a line, until its
//! input is closed or NVML cannot be used. It has one thread, and opens NVML once.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use super::host::Host;
use super::nvml::Driver;
use crate::gpu::answer::{Answer, Ask};

/// The internal subcommand. It is no part of the command line.
pub const SUBCOMMAND: &str = "gpu-probe";
/// The bytes of a question at most; the longest is 12 bytes.
const ASK_BYTES: u64 = 64;

/// Answers until there are no more questions. An empty `library` is what the loader finds. `root` is the directory
/// that holds `/proc` and `/sys`; only tests have another than `/`.
pub fn main(library: Option<&Path>, root: Option<&Path>) -> ExitCode {
    let library = library.filter(|path| !path.as_os_str().is_empty());
    let host = Host::new(root.unwrap_or(Path::new("/")));
    match run(io::stdin().lock(), io::stdout().lock(), || Driver::open(library, host)) {
        Ok(()) => ExitCode::SUCCESS,
        // No process reads an error here: the agent sees that the child ended.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(
    input: impl Read,
    mut output: impl Write,
    open: impl FnOnce() -> Result<Driver, crate::gpu::answer::Closed>,
) -> io::Result<()> {
    let mut input = BufReader::new(input);
    // Opened with the first question: a child that nobody asks does not touch the driver.
    let Some(first) = next(&mut input)? else { return Ok(()) };
    let mut driver = match open() {
        Ok(driver) => driver,
        Err(closed) => return write(&mut output, &Answer::Closed(closed)),
    };
    let mut ask = first;
    loop {
        let answer = driver.answer(ask);
        write(&mut output, &answer)?;
        if matches!(answer, Answer::Closed(_)) {
            return Ok(());
        }
        match next(&mut input)? {
            Some(next) => ask = next,
            None => return Ok(()),
        }
    }
}

/// The next question; `None`: the input is closed.
fn next(input: &mut impl BufRead) -> io::Result<Option<Ask>> {
    let mut line = Vec::new();
    input.take(ASK_BYTES).read_until(b'\n', &mut line)?;
    if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&line)?)) }
}

fn write(output: &mut impl Write, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    output.write_all(&line)?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::answer::Closed;

    #[test]
    fn questions_are_lines_of_a_bounded_length() {
        let mut input: &[u8] = b"\"inventory\"\n\"readings\"\n\"processes\"\n";
        for ask in [Some(Ask::Inventory), Some(Ask::Readings), Some(Ask::Processes), None] {
            assert_eq!(next(&mut input).unwrap(), ask);
        }
        let long = [b'"'; 128];
        for wrong in [&b"\"reboot\"\n"[..], b"\n", b"\"inventory", &long] {
            assert!(next(&mut &*wrong).is_err(), "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn without_questions_nothing_is_opened_and_with_one_an_nvml_that_cannot_be_opened_is_an_answer() {
        let mut output = Vec::new();
        run(&b""[..], &mut output, || panic!("opened")).unwrap();
        assert!(output.is_empty());
        let closed = || Closed::Absent { why: "no library".to_owned() };
        run(&b"\"inventory\"\n\"readings\"\n"[..], &mut output, || Err(closed())).unwrap();
        assert_eq!(output.pop(), Some(b'\n'));
        assert_eq!(serde_json::from_slice::<Answer>(&output).unwrap(), Answer::Closed(closed()));
    }
}
