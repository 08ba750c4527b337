//! Findings from facts. Pure: `core::net` has addresses, and no sockets.

pub mod agent;
pub mod clock;
pub mod conditions;
pub mod disk;
pub mod endpoints;
pub mod engine;
pub mod gpus;
pub mod http;
pub mod limits;
pub mod memory;
pub mod mesh;
#[cfg(test)]
pub(crate) mod testing;
pub mod token;

use crate::types::{Check, Topic, Verdict};

/// The first words of a mend, where a message of another part ends with one.
const MENDS: &[&str] = &[
    "add", "check", "create", "free", "give", "install", "join", "load", "look", "lower", "make", "open", "raise",
    "reboot", "reload", "remove", "run", "set", "start", "stop", "upgrade", "wait",
];

/// A fault whose message comes from another part of ostler: most end with their mend, after `;` or `:`. `otherwise`: the
/// mend of one that does not.
pub fn fault(topic: Topic, verdict: Verdict, text: &str, otherwise: &str) -> Check {
    let (message, mend) = split(text).unwrap_or((text, otherwise));
    Check { topic, verdict, message: message.to_owned(), mend: Some(mend.to_owned()) }
}

/// The message without its mend, and the mend.
fn split(text: &str) -> Option<(&str, &str)> {
    if let Some((message, command)) = text.split_once("; run: ") {
        return Some((message, command));
    }
    let marks = text.char_indices().filter(|(_, c)| matches!(c, ';' | ':'));
    let is_mend = |rest: &str| {
        rest.strip_prefix(' ').is_some_and(|rest| {
            MENDS.contains(&rest.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default())
        })
    };
    let at = marks.map(|(at, _)| at).find(|at| is_mend(&text[at + 1..]))?;
    Some((&text[..at], text[at + 2..].trim_start_matches("run: ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mend_of_a_message_is_its_end() {
        let of = |text: &'static str| split(text);
        assert_eq!(
            of("f is readable by others (mode 0644); run: chmod 600 f"),
            Some(("f is readable by others (mode 0644)", "chmod 600 f",))
        );
        assert_eq!(
            of("1 GiB is free on /d, too little: the node admits no session; free disk space"),
            Some(("1 GiB is free on /d, too little: the node admits no session", "free disk space",))
        );
        assert_eq!(of("it speaks 1.53 at most: upgrade ostler"), Some(("it speaks 1.53 at most", "upgrade ostler")));
        assert_eq!(of("cannot reach b: another token"), None);
        assert_eq!(fault(Topic::Mesh, Verdict::Fail, "cannot reach b: no", "open it").mend.as_deref(), Some("open it"));
    }
}
