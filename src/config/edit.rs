//! Edits of the configuration file by a command. Everything else in the file stays, comments included.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Item, Table, Value};

use super::{Config, Environment, Error, text_of};

/// The mode of a new configuration file. It contains no secret.
const MODE: u32 = 0o644;

/// Why the file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("cannot {what} {}: {source}", file.display())]
    Io { file: PathBuf, what: &'static str, source: io::Error },
    /// The file or the added value is invalid.
    #[error(transparent)]
    Invalid(#[from] Error),
    #[error("{}: cluster.seeds is not a list of strings; correct it first, for example: seeds = []", .0.display())]
    NotAList(PathBuf),
}

/// Adds a seed, as `host` or `host:port`, to `cluster.seeds` of the file, and creates a missing file.
/// True if the seed was not in the list before. The new file is on disk when this returns.
///
/// # Errors
/// The file cannot be read or written, or the configuration is or would become invalid.
pub fn add_seed(file: &Path, seed: &str) -> Result<bool, EditError> {
    let io_error = |what, source| EditError::Io { file: file.to_owned(), what, source };
    let text = match text_of(file) {
        Ok((_, text)) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(io_error("read", error)),
    };
    let Some(edited) = with_seed(&text, seed, file)? else { return Ok(false) };
    Config::parse(&edited, Some(file), true, &Environment::of_process())?;
    replace(file, &edited).map_err(|error| io_error("write", error))?;
    Ok(true)
}

/// The text with the seed; `None` if the list has it already.
fn with_seed(text: &str, seed: &str, file: &Path) -> Result<Option<String>, EditError> {
    // Parsed first, so that an invalid file gets the same messages as everywhere else.
    Config::parse(text, Some(file), true, &Environment::of_process())?;
    let not_a_list = || EditError::NotAList(file.to_owned());
    let mut document: DocumentMut = text.parse().map_err(|_| not_a_list())?;
    let cluster = document.entry("cluster").or_insert_with(|| Item::Table(Table::new()));
    let cluster = cluster.as_table_like_mut().ok_or_else(not_a_list)?;
    let seeds = cluster.entry("seeds").or_insert_with(|| Item::Value(Value::Array(Array::new())));
    let seeds = seeds.as_array_mut().ok_or_else(not_a_list)?;
    if seeds.iter().any(|known| known.as_str() == Some(seed)) {
        return Ok(None);
    }
    seeds.push(seed);
    Ok(Some(document.to_string()))
}

/// Replaces the file atomically and keeps its mode: a concurrent reader gets the old or the new text.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mode = fs::metadata(file).map_or(MODE, |metadata| metadata.permissions().mode());
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = directory.join(name);
    let written =
        File::options().write(true).create(true).truncate(true).mode(mode).open(&new).and_then(|mut opened| {
            opened.write_all(text.as_bytes())?;
            opened.sync_all()?;
            fs::rename(&new, file)?;
            File::open(directory)?.sync_all()
        });
    written.inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(text: &str, seed: &str) -> Option<String> {
        with_seed(text, seed, Path::new("ostler.toml")).unwrap()
    }

    #[test]
    fn a_seed_is_added_and_the_rest_of_the_file_stays() {
        let shipped = include_str!("../../config/ostler.toml");
        let one = edited(shipped, "host-a").unwrap();
        assert_eq!(one, shipped.replace("seeds = []", "seeds = [\"host-a\"]"));
        let two = edited(&one, "host-b:7480").unwrap();
        assert_eq!(two, shipped.replace("seeds = []", "seeds = [\"host-a\", \"host-b:7480\"]"));
        assert_eq!(edited(&two, "host-a"), None);
        assert_eq!(edited("", "host-a").unwrap(), "[cluster]\nseeds = [\"host-a\"]\n");
        let inline = edited("cluster = { name = 'c' }", "a").unwrap();
        assert_eq!(edited(&inline, "a"), None, "an inline table holds it, too: {inline}");
    }

    #[test]
    fn an_invalid_file_or_seed_is_an_error_and_the_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ostler.toml");
        for (text, seed) in [("[cluster]\nseeds = 3\n", "a"), ("[nonsense]\n", "a"), ("", "not a host")] {
            fs::write(&file, text).unwrap();
            assert!(add_seed(&file, seed).is_err(), "{text}{seed}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }

    #[test]
    fn the_file_keeps_its_mode_and_a_new_one_is_readable() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("etc/ostler.toml");
        assert!(add_seed(&file, "host-a").unwrap());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, MODE);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(add_seed(&file, "host-b").unwrap());
        assert!(!add_seed(&file, "host-b").unwrap());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }
}
