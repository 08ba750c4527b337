//! Templates: the values of variables and the names of volumes, with places that each session fills in.

use super::{Name, SessionId, User};

/// What a template may contain, and what stands for it in one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placeholder {
    User,
    Workspace,
    Session,
    Secret,
}

/// Random bytes of a session's secret: 144 bits.
pub const SECRET_BYTES: usize = 18;
/// Characters of a session's secret: its bytes as base64url, which has four characters for three bytes.
const SECRET_LEN: usize = SECRET_BYTES / 3 * 4;

impl Placeholder {
    const ALL: [Self; 4] = [Self::User, Self::Workspace, Self::Session, Self::Secret];

    /// As a template contains it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "{user}",
            Self::Workspace => "{workspace}",
            Self::Session => "{session}",
            Self::Secret => "{secret}",
        }
    }

    /// Bytes of what may stand for it at most.
    const fn longest(self) -> usize {
        match self {
            Self::User => User::MAX_BYTES,
            Self::Workspace => Name::MAX_LEN,
            Self::Session => SessionId::LEN,
            Self::Secret => SECRET_LEN,
        }
    }
}

/// Fills in a template. What is filled in is not read as a template again. A placeholder without a value stays.
pub fn fill<'a>(template: &str, value: impl Fn(Placeholder) -> Option<&'a str>) -> String {
    let mut filled = String::with_capacity(template.len());
    for (plain, placeholder) in pieces(template) {
        filled.push_str(plain);
        filled.extend(placeholder.map(|placeholder| value(placeholder).unwrap_or(placeholder.as_str())));
    }
    filled
}

/// Bytes of a template at most once it is filled in, in any session.
pub fn longest(template: &str) -> usize {
    pieces(template).map(|(plain, placeholder)| plain.len() + placeholder.map_or(0, Placeholder::longest)).sum()
}

/// The template as plain texts, each with the placeholder that follows it.
fn pieces(template: &str) -> impl Iterator<Item = (&str, Option<Placeholder>)> {
    let mut rest = Some(template);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let found = text.match_indices('{').find_map(|(at, _)| {
            let placeholder = Placeholder::ALL.into_iter().find(|known| text[at..].starts_with(known.as_str()))?;
            Some((at, placeholder))
        });
        let Some((at, placeholder)) = found else { return Some((text, None)) };
        rest = Some(&text[at + placeholder.as_str().len()..]);
        Some((&text[..at], Some(placeholder)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(template: &str, user: &str) -> String {
        fill(template, |placeholder| match placeholder {
            Placeholder::User => Some(user),
            Placeholder::Workspace => Some("w"),
            Placeholder::Session => Some("s"),
            Placeholder::Secret => None,
        })
    }

    #[test]
    fn every_placeholder_is_filled_in_and_everything_else_stays() {
        assert_eq!(filled("{user}-{workspace}.{session}{user}", "a"), "a-w.sa");
        for same in ["", "plain", "{", "{user", "user}", "{User}", "{other}", "{secret}", "{{secret}}"] {
            assert_eq!(filled(same, "a"), same);
        }
        assert_eq!(filled("{{user}}", "a"), "{a}");
        assert_eq!(filled("ä{user}ö", "ü"), "äüö");
    }

    #[test]
    fn a_value_is_not_a_template() {
        assert_eq!(filled("{user}-{workspace}", "{workspace}"), "{workspace}-w");
        assert_eq!(filled("{{user}}", "user"), "{user}");
    }

    #[test]
    fn the_longest_text_has_the_longest_values() {
        let all = "{user}{workspace}{session}{secret}";
        assert_eq!(longest(all), User::MAX_BYTES + Name::MAX_LEN + SessionId::LEN + SECRET_LEN);
        assert_eq!(longest("a{user}b"), User::MAX_BYTES + 2);
        assert_eq!(longest("{other}"), 7);
    }

    proptest! {
        #[test]
        fn no_filled_template_is_longer_than_the_longest(
            template in r"(\{user\}|\{workspace\}|[{}a-zä]){0,20}",
            user in "[ -~]{0,100}",
        ) {
            prop_assert!(filled(&template, &user).len() <= longest(&template));
        }
    }
}
