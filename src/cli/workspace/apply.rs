//! `ostler workspace apply`: the catalogue from files.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use hyper::Method;
use serde::Serialize;

use crate::cli::client::{Call, Client};
use crate::cli::failure::Failure;
use crate::cli::route::Route;
use crate::cli::table::table;
use crate::cli::{Context, Failures};
use crate::types::{Name, Workspace};

use super::catalogue;
use super::file::{self, Language};

/// Create and change workspaces from files.
///
/// Reads *.toml, *.json and *.yaml; each holds one workspace, or a list under `workspace`. All files
/// are checked before any workspace is changed. Workspaces that no file names stay.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler workspace apply -f catalogue/ --dry-run
  ostler workspace export | ostler workspace apply -f -")]
pub(in crate::cli) struct ApplyArgs {
    /// A file, a directory of files, or `-`: TOML from standard input.
    #[arg(short, long = "filename", value_name = "DIR|FILE", required = true)]
    files: Vec<PathBuf>,
    /// Only show what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// The change of one workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Created,
    Changed,
    Unchanged,
}

/// The change that was made to one workspace, or would be.
#[derive(Debug, Serialize)]
struct Applied {
    name: Name,
    action: Action,
}

pub(super) async fn run(args: &ApplyArgs, context: &Context) -> Result<(), Failure> {
    let wanted = read_all(&args.files)?;
    let client = context.client()?;
    let known = catalogue(&client).await?;
    let mut applied = Vec::new();
    let mut failures = Failures::default();
    for workspace in wanted.into_values() {
        let action = compare(&workspace, &known);
        match if args.dry_run { Ok(()) } else { store(&client, &workspace, action).await } {
            Ok(()) => applied.push(Applied { name: workspace.name, action }),
            Err(failure) => failures.add(workspace.name.as_str(), &failure),
        }
    }
    context.out.value(&applied, || describe(&applied, args.dry_run))?;
    failures.into_result()
}

/// Reads and checks every workspace of the files. Returns them by name.
fn read_all(paths: &[PathBuf]) -> Result<BTreeMap<Name, Workspace>, Failure> {
    let mut all: BTreeMap<Name, (Workspace, PathBuf)> = BTreeMap::new();
    for path in paths {
        for (file, language) in files_of(path)? {
            for workspace in read_one(&file, language)? {
                let name = workspace.name.clone();
                if let Some((_, other)) = all.insert(name.clone(), (workspace, file.clone())) {
                    let (one, other) = (file.display(), other.display());
                    return Err(Failure::Failed(format!("workspace `{name}` is both in {other} and in {one}")));
                }
            }
        }
    }
    Ok(all.into_iter().map(|(name, (workspace, _))| (name, workspace)).collect())
}

/// The file itself, or the files of the directory, sorted by name.
fn files_of(path: &Path) -> Result<Vec<(PathBuf, Language)>, Failure> {
    if path == Path::new("-") {
        return Ok(vec![(path.to_owned(), Language::Toml)]);
    }
    let wrong = |e| Failure::Failed(format!("{} cannot be read: {e}", path.display()));
    if !fs::metadata(path).map_err(wrong)?.is_dir() {
        let language = Language::of(path);
        let unknown = || Failure::Usage(format!("{} is not a .toml, .json or .yaml file", path.display()));
        return Ok(vec![(path.to_owned(), language.ok_or_else(unknown)?)]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(wrong)? {
        let file = entry.map_err(wrong)?.path();
        if let Some(language) = Language::of(&file) {
            files.push((file, language));
        }
    }
    files.sort_by(|one, other| one.0.cmp(&other.0));
    if files.is_empty() {
        Err(Failure::Failed(format!("{} holds no workspace file", path.display())))
    } else {
        Ok(files)
    }
}

fn read_one(file: &Path, language: Language) -> Result<Vec<Workspace>, Failure> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)
    } else {
        fs::File::open(file).and_then(|mut open| open.read_to_string(&mut text))
    };
    read.map_err(|e| Failure::Failed(format!("{} cannot be read: {e}", file.display())))?;
    file::read(&text, language).map_err(|failure| match failure {
        Failure::Refused(message) => Failure::Refused(format!("{}: {message}", file.display())),
        other => Failure::Failed(format!("{}: {other}", file.display())),
    })
}

fn compare(wanted: &Workspace, known: &[Workspace]) -> Action {
    match known.iter().find(|known| known.name == wanted.name) {
        None => Action::Created,
        Some(known) if known == wanted => Action::Unchanged,
        Some(_) => Action::Changed,
    }
}

async fn store(client: &Client, workspace: &Workspace, action: Action) -> Result<(), Failure> {
    let call = match action {
        Action::Unchanged => return Ok(()),
        Action::Created => Call::post(Route::new(&["workspaces"])),
        Action::Changed => Call::new(Method::PUT, Route::new(&["workspaces", workspace.name.as_str()])),
    };
    client.send(call.json(workspace)?).await.map(|_| ())
}

fn describe(applied: &[Applied], dry_run: bool) -> String {
    let rows = applied.iter().map(|Applied { name, action }| {
        let word = match (action, dry_run) {
            (Action::Created, false) => "created",
            (Action::Created, true) => "would be created",
            (Action::Changed, false) => "changed",
            (Action::Changed, true) => "would be changed",
            (Action::Unchanged, _) => "unchanged",
        };
        vec![name.to_string(), word.to_owned()]
    });
    table(&["WORKSPACE", "ACTION"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, workspace: &str) {
        let text = format!("name = \"{workspace}\"\nimage = \"a\"\ncores = 1\nmemory_bytes = \"1G\"\n");
        fs::write(folder.join(name), text).unwrap();
    }

    #[test]
    fn a_directory_is_read_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "b.toml", "b");
        write(folder.path(), "a.toml", "a");
        fs::write(folder.path().join("README.md"), "not ours").unwrap();
        let all = read_all(&[folder.path().to_owned()]).unwrap();
        assert_eq!(all.keys().map(Name::as_str).collect::<Vec<_>>(), ["a", "b"]);
        fs::write(folder.path().join("c.json"), r#"{"name":"c","image":"a","cores":0,"memory_bytes":1}"#).unwrap();
        let failure = read_all(&[folder.path().to_owned()]).unwrap_err();
        assert!(matches!(&failure, Failure::Refused(message) if message.contains("c.json: c: cores")), "{failure}");
    }

    #[test]
    fn one_name_in_two_files_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.toml", "same");
        write(folder.path(), "b.toml", "same");
        let failure = read_all(&[folder.path().to_owned()]).unwrap_err().to_string();
        assert!(failure.contains("a.toml and in") && failure.contains("b.toml"), "{failure}");
        assert!(read_all(&[folder.path().join("missing.toml")]).is_err());
    }

    #[test]
    fn only_what_differs_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.toml", "a");
        let a = read_all(&[folder.path().to_owned()]).unwrap().into_values().next().unwrap();
        let changed = Workspace { gpus: 1, ..a.clone() };
        assert_eq!(compare(&a, &[]), Action::Created);
        assert_eq!(compare(&a, std::slice::from_ref(&a)), Action::Unchanged);
        assert_eq!(compare(&a, &[changed]), Action::Changed);
    }

    #[test]
    fn a_dry_run_says_would() {
        let applied = |action| Applied { name: "a".parse().unwrap(), action };
        let all = [applied(Action::Created), applied(Action::Unchanged)];
        assert_eq!(describe(&all, true), "WORKSPACE   ACTION\na           would be created\na           unchanged");
    }
}
