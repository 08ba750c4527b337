//! An image made from this program and its loaded libraries: enough to run it, without anything to
//! pull.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::page;

/// The directory of all files in the image.
const DIRECTORY: &str = "ostler";

/// An image, and the command that serves a page in it.
pub(super) struct Image {
    /// A tar archive of its root.
    pub(super) archive: Vec<u8>,
    pub(super) command: Vec<String>,
}

/// The command that runs the program at `path` as a page.
pub(super) fn page_command(path: &str) -> Vec<String> {
    vec![path.to_owned(), page::SUBCOMMAND.to_owned()]
}

/// Reads this program and its libraries from the files that the kernel has mapped.
///
/// # Errors
/// A file cannot be read.
pub(super) fn of_this_program() -> io::Result<Image> {
    let libraries = libraries(&fs::read_to_string("/proc/self/maps")?)?;
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, "ostler", Path::new("/proc/self/exe"))?;
    for (name, path) in &libraries {
        add(&mut archive, name, path)?;
    }
    let loader = libraries.keys().find(|name| is_loader(name));
    Ok(Image { archive: archive.into_inner()?, command: command(loader.map(String::as_str)) })
}

/// The command of a page. A program without a loader is linked statically and runs by itself.
fn command(loader: Option<&str>) -> Vec<String> {
    let page = page_command(&format!("/{DIRECTORY}/ostler"));
    let Some(loader) = loader else { return page };
    let mut words = vec![format!("/{DIRECTORY}/{loader}"), "--library-path".to_owned(), format!("/{DIRECTORY}")];
    words.extend(page);
    words
}

/// The mapped shared libraries, including the loader, by every name that the loader may look for.
fn libraries(maps: &str) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for path in mapped(maps) {
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        for alias in aliases(&path, &name)? {
            found.insert(alias, path.clone());
        }
        found.insert(name, path);
    }
    Ok(found)
}

/// The files of shared libraries in `/proc/<pid>/maps`, each once.
fn mapped(maps: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])))
        .filter(|path| path.file_name().is_some_and(|name| is_library(&name.to_string_lossy())))
        .map(Path::to_owned)
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

/// The links to a library in its own directory. The loader looks for `libc-2.31.so` as `libc.so.6`.
fn aliases(path: &Path, name: &str) -> io::Result<Vec<String>> {
    let Some(directory) = path.parent() else { return Ok(Vec::new()) };
    let leads_here = |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|to| to == Path::new(name));
    let entries = fs::read_dir(directory)?.filter_map(Result::ok).filter(leads_here);
    Ok(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn is_library(name: &str) -> bool {
    name.ends_with(".so") || name.contains(".so.") || is_loader(name)
}

fn is_loader(name: &str) -> bool {
    ["ld-", "ld64.so", "ld.so"].iter().any(|prefix| name.starts_with(prefix))
}

fn add(archive: &mut tar::Builder<Vec<u8>>, name: &str, path: &Path) -> io::Result<()> {
    let bytes = fs::read(path)?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(bytes.len().try_into().map_err(io::Error::other)?);
    archive.append_data(&mut header, format!("{DIRECTORY}/{name}"), bytes.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c8a00000-55d0c8a20000 r--p 00000000 fe:00 131 /usr/bin/ostler
7f00-7f01 r--p 00000000 fe:00 77   /usr/lib/x86_64-linux-gnu/libc.so.6
7f01-7f02 r-xp 00026000 fe:00 77   /usr/lib/x86_64-linux-gnu/libc.so.6
7f03-7f04 r--p 00000000 fe:00 78   /opt/a b/libgcc_s.so.1
7f05-7f06 r--p 00000000 fe:00 79   /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
7f07-7f08 r--p 00000000 fe:00 80   /usr/lib/locale/locale-archive
7ffd-7ffe rw-p 00000000 00:00 0    [stack]
7ffe-7fff r-xp 00000000 00:00 0    [vdso]
";

    #[test]
    fn the_libraries_and_the_loader_are_found_among_what_is_mapped() {
        let expected = [
            "/opt/a b/libgcc_s.so.1",
            "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            "/usr/lib/x86_64-linux-gnu/libc.so.6",
        ];
        assert_eq!(mapped(MAPS), expected.map(PathBuf::from));
    }

    #[test]
    fn the_command_gives_the_loader_the_library_path() {
        let words = command(Some("ld-linux-x86-64.so.2")).join(" ");
        assert_eq!(words, "/ostler/ld-linux-x86-64.so.2 --library-path /ostler /ostler/ostler demo-page");
        assert_eq!(command(None).join(" "), "/ostler/ostler demo-page");
    }

    #[test]
    fn a_library_is_in_the_image_under_the_names_of_its_links() {
        let directory = tempfile::tempdir().unwrap();
        let library = directory.path().join("libx-2.31.so");
        fs::write(&library, "x").unwrap();
        std::os::unix::fs::symlink("libx-2.31.so", directory.path().join("libx.so.6")).unwrap();
        std::os::unix::fs::symlink("else.so", directory.path().join("liby.so.6")).unwrap();
        let maps = format!("7f00-7f01 r--p 00000000 fe:00 77 {}\n", library.display());
        let names: Vec<String> = libraries(&maps).unwrap().into_keys().collect();
        assert_eq!(names, ["libx-2.31.so", "libx.so.6"]);
    }
}
