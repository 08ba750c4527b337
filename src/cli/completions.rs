//! `ostler completions` and `ostler man`: made from the definition of the command line itself.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::failure::Failure;
use super::output::Output;

/// Write the completions of a shell to standard output.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler completions bash > /etc/bash_completion.d/ostler
  ostler completions fish > ~/.config/fish/completions/ostler.fish")]
pub(super) struct CompletionsArgs {
    /// The shell to write completions for.
    shell: Shell,
}

/// Write a manual page to standard output, or all of them to a directory.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler man session create | man -l -
  ostler man --dir /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// The command whose page to write [default: ostler itself].
    command: Vec<String>,
    /// Write every page into this directory.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs, mut ostler: Command, out: &Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut ostler, "ostler", &mut script);
    out.bytes(&script)
}

pub(super) fn man(args: &ManArgs, ostler: Command, out: &Output) -> Result<(), Failure> {
    if let Some(dir) = &args.dir {
        let wrong = |e| Failure::Failed(format!("the manual pages cannot be written to {}: {e}", dir.display()));
        return std::fs::create_dir_all(dir).and_then(|()| write_pages(ostler, dir)).map_err(wrong);
    }
    let mut text = Vec::new();
    page(find(ostler, &args.command)?).render(&mut text)?;
    out.bytes(&text)
}

fn page(command: Command) -> Man {
    Man::new(command).source(concat!("ostler ", env!("CARGO_PKG_VERSION"))).manual("ostler")
}

/// Writes a page for the command and for each of its subcommands.
fn write_pages(mut command: Command, dir: &Path) -> io::Result<()> {
    command.build();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        write_pages(sub.clone(), dir)?;
    }
    page(command).generate_to(dir).map(|_| ())
}

fn find(mut command: Command, path: &[String]) -> Result<Command, Failure> {
    command.build();
    path.iter().try_fold(command, |command, name| {
        let found = command.find_subcommand(name).cloned();
        found.ok_or_else(|| Failure::Usage(format!("there is no command `{}`", path.join(" "))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::definition;

    #[test]
    fn every_command_has_its_page() {
        let folder = tempfile::tempdir().unwrap();
        write_pages(definition(), folder.path()).unwrap();
        for page in ["ostler.1", "ostler-session.1", "ostler-session-create.1", "ostler-node-drain.1"] {
            let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
            assert!(text.contains(concat!("\"ostler ", env!("CARGO_PKG_VERSION"), "\"")), "{page}: {text}");
        }
        assert!(!folder.path().join("ostler-help.1").exists());
    }

    #[test]
    fn a_page_is_found_by_the_words_of_its_command() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let page = find(definition(), &words("session create")).unwrap();
        assert_eq!(page.get_display_name(), Some("ostler-session-create"));
        assert!(find(definition(), &words("session destroy")).is_err());
    }

    #[test]
    fn completions_know_the_nouns() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut definition(), "ostler", &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(
            script.contains("ostler__subcmd__session__subcmd__create") || script.contains("ostler__session__create")
        );
    }
}
