//! References to images. Pure.

/// An image reference that names exactly one image: with a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Reference(String);

impl Reference {
    /// Reads the image of a workspace. Without a tag it means `latest`, as in Docker; a call without a tag would
    /// make the engine pull every tag.
    ///
    /// # Errors
    /// A message that the text is not an image reference.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@');
        let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        // It becomes part of a path of the engine's API, so it must not reach another path.
        if !first || !text.chars().all(fine) || text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("`{}` is not an image reference", text.escape_debug()));
        }
        let last = text.rsplit('/').next().unwrap_or(text);
        Ok(Self(if last.contains([':', '@']) { text.to_owned() } else { format!("{text}:latest") }))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The short form, as the engine lists it: without `docker.io/` and `library/`.
    pub(super) fn familiar(&self) -> &str {
        let name = self.0.strip_prefix("docker.io/").unwrap_or(&self.0);
        name.strip_prefix("library/").unwrap_or(name)
    }

    /// Whether it has a digest: then no registry can have a newer image for it.
    pub(super) fn is_fixed(&self) -> bool {
        self.0.contains('@')
    }

    /// The digest under which this reference was pulled, out of `repository@digest` pairs.
    pub(super) fn digest(&self, repo_digests: &[String]) -> Option<String> {
        let pairs = || repo_digests.iter().filter_map(|pair| pair.split_once('@'));
        let own = pairs().find(|(repository, _)| *repository == self.repository());
        own.or_else(|| pairs().next()).map(|(_, digest)| digest.to_owned())
    }

    fn repository(&self) -> &str {
        let name = self.0.split('@').next().unwrap_or(&self.0);
        match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository,
            _ => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_tag_it_is_latest() {
        let read = |text: &str| Reference::parse(text).unwrap().as_str().to_owned();
        assert_eq!(read("busybox"), "busybox:latest");
        assert_eq!(read("busybox:1"), "busybox:1");
        assert_eq!(read("registry:5000/team/x"), "registry:5000/team/x:latest");
        assert_eq!(read("registry:5000/team/x:2"), "registry:5000/team/x:2");
        assert_eq!(read("x@sha256:ab"), "x@sha256:ab");
        let familiar = |text: &str| Reference::parse(text).unwrap().familiar().to_owned();
        assert_eq!(familiar("docker.io/library/busybox"), "busybox:latest");
        assert_eq!(familiar("docker.io/team/x:1"), "team/x:1");
        assert_eq!(familiar("registry:5000/library/x:1"), "registry:5000/library/x:1");
        assert!(Reference::parse("x@sha256:ab").unwrap().is_fixed());
    }

    #[test]
    fn text_that_changes_the_path_of_a_call_is_refused() {
        for bad in ["", "../containers/x", "a/../../containers/x", "a//b", "a?force=1", "a b", "-a", "a/"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_digest_of_the_own_repository_comes_first() {
        let pairs = ["other@sha256:1".to_owned(), "registry:5000/x@sha256:2".to_owned()];
        let digest = |text: &str| Reference::parse(text).unwrap().digest(&pairs);
        assert_eq!(digest("registry:5000/x:7"), Some("sha256:2".to_owned()));
        assert_eq!(digest("library/x"), Some("sha256:1".to_owned()));
        assert_eq!(Reference::parse("x").unwrap().digest(&[]), None);
    }
}
