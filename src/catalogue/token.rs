//! API tokens: how they are created and checked. Pure, except for the randomness of a new token.
//!
//! A token reads `ost_<id>_<secret>`: the id of 8 base32 characters identifies it, also in the logs of other programs,
//! and the secret of 43 base64url characters proves it.

use std::time::Duration;

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD, HEXLOWER};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

use super::{Error, Snapshot, StoredToken};
use crate::types::{ApiToken, ApiTokenRequest, Deadline, Invalid, Moment, Name, NewApiToken, Period};

const PREFIX: &str = "ost";
/// 40 bits, 8 characters: enough to distinguish the tokens of one catalogue. The id is no secret.
const ID_BYTES: usize = 5;
/// 256 bits, 43 characters.
const SECRET_BYTES: usize = 32;

/// The token with this text, if the snapshot has it and it has not expired.
pub(super) fn token_of<'a>(snapshot: &'a Snapshot, text: &str, now: Moment) -> Option<&'a ApiToken> {
    let stored = snapshot.tokens.get(id_of(text)?)?;
    // The time of this comparison depends on how many characters of the hashes agree. To use that, an attacker would
    // have to choose texts by their SHA-256, and would learn the hash, not the 256 random bits behind it.
    let genuine = stored.sha256 == hash(text);
    (genuine && !has_expired(stored, now)).then_some(&stored.token)
}

pub(super) fn has_expired(stored: &StoredToken, now: Moment) -> bool {
    stored.deadline.is_some_and(|deadline| deadline.is_due(now))
}

/// The token with its deadline on the clock of this boot.
pub(super) fn rebased(stored: &StoredToken, now: Moment) -> StoredToken {
    let mut rebased = stored.clone();
    if let Some(deadline) = stored.deadline.map(|deadline| deadline.rebased(now))
        && stored.deadline != Some(deadline)
    {
        rebased.deadline = Some(deadline);
        rebased.token.expires_at = Some(deadline.shown(now));
    }
    rebased
}

/// Creates a token whose id and name are unused in the snapshot. Returns what to show once, and what to store.
pub(super) fn new(
    snapshot: &Snapshot,
    request: &ApiTokenRequest,
    now: Moment,
) -> Result<(NewApiToken, StoredToken), Error> {
    check_expiry(request.expires_in_seconds)?;
    if let Some(name) = &request.name {
        check_free(snapshot, name)?;
    }
    let id = unused_id(snapshot);
    let name = match &request.name {
        Some(name) => name.clone(),
        None => format!("token-{id}").parse().expect("a prefix and 8 characters of base32 are a name"),
    };
    let deadline = request.expires_in_seconds.map(|seconds| Deadline::after(now, Duration::from_secs(seconds)));
    let secret = format!("{PREFIX}_{id}_{}", BASE64URL_NOPAD.encode(&random::<SECRET_BYTES>()));
    let expires_at = deadline.map(|deadline| deadline.shown(now));
    let token = ApiToken { id, name, role: request.role, created_at: now.wall, expires_at };
    let stored = StoredToken { token: token.clone(), sha256: hash(&secret), deadline };
    Ok((NewApiToken { token, secret }, stored))
}

fn check_expiry(seconds: Option<u64>) -> Result<(), Invalid> {
    match seconds {
        Some(seconds) if !(1..=Period::MAX.as_secs()).contains(&seconds) => {
            let expected = format!("{seconds} is out of range; expected 1 to {} seconds", Period::MAX.as_secs());
            Err(Invalid::new("expires_in_seconds", expected))
        }
        _ => Ok(()),
    }
}

/// A token is revoked by id or name, so its name must be neither the name nor the id of another token.
fn check_free(snapshot: &Snapshot, name: &Name) -> Result<(), Error> {
    let taken = |stored: &StoredToken| stored.token.name == *name || stored.token.id == name.as_str();
    if snapshot.tokens.values().any(|stored| taken(stored)) {
        return Err(Error::TokenExists(name.clone()));
    }
    Ok(())
}

fn unused_id(snapshot: &Snapshot) -> String {
    let taken = |id: &str| snapshot.tokens.values().any(|t| t.token.id == id || t.token.name.as_str() == id);
    loop {
        let id = BASE32_NOPAD.encode(&random::<ID_BYTES>()).to_ascii_lowercase();
        if !taken(&id) {
            return id;
        }
    }
}

fn id_of(text: &str) -> Option<&str> {
    let mut parts = text.splitn(3, '_'); // the secret may contain `_`
    (parts.next()? == PREFIX).then(|| parts.next()).flatten()
}

fn hash(text: &str) -> String {
    HEXLOWER.encode(digest(&SHA256, text.as_bytes()).as_ref())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the kernel has randomness once it runs processes");
    bytes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::types::{BootInstant, Role, Timestamp};

    const DAY: Duration = Duration::from_secs(86_400);

    fn moment() -> Moment {
        Moment { wall: Timestamp::from_millis(1_000_000_000), boot: BootInstant::from_millis(1000), boot_id: 1 }
    }

    fn request(expires_in_seconds: Option<u64>) -> ApiTokenRequest {
        ApiTokenRequest { role: Role::Operate, name: None, expires_in_seconds }
    }

    fn with_token(request: &ApiTokenRequest) -> (Snapshot, String) {
        let mut snapshot = Snapshot::default();
        let (new, stored) = new(&snapshot, request, moment()).unwrap();
        snapshot.tokens.insert(stored.token.id.clone(), Arc::new(stored));
        (snapshot, new.secret)
    }

    fn role_of(snapshot: &Snapshot, secret: &str, now: Moment) -> Option<Role> {
        snapshot.token_of(secret, now).map(|token| token.role)
    }

    #[test]
    fn only_the_whole_text_of_a_token_gives_its_role() {
        let (snapshot, secret) = with_token(&request(None));
        assert_eq!(role_of(&snapshot, &secret, moment()), Some(Role::Operate));
        let mut wrong = secret.clone();
        let last = if wrong.pop() == Some('A') { 'E' } else { 'A' };
        wrong.push(last);
        let (id, short) = (&secret[4..12], &secret[..secret.len() - 1]);
        for text in
            [wrong.as_str(), short, id, "", "ost", "ost_", "ost__", &format!("ost_{id}_"), &format!("{secret}A")]
        {
            assert_eq!(role_of(&snapshot, text, moment()), None, "{text}");
        }
    }

    #[test]
    fn a_token_has_the_documented_form() {
        let (snapshot, secret) = with_token(&request(None));
        let stored = snapshot.tokens.values().next().unwrap();
        assert_eq!((stored.token.id.len(), secret.len()), (8, 4 + 8 + 1 + 43));
        assert!(secret.starts_with(&format!("ost_{}_", stored.token.id)));
        assert_eq!(stored.token.name.as_str(), format!("token-{}", stored.token.id));
        assert!(!serde_json::to_string(&**stored).unwrap().contains(&secret[13..]), "only the hash is stored");
    }

    #[test]
    fn tokens_expire_by_the_boot_clock() {
        let (snapshot, secret) = with_token(&request(Some(3600)));
        let hour = Duration::from_secs(3600);
        let role = |now| role_of(&snapshot, &secret, now);
        assert_eq!(role(moment().plus(hour - Duration::from_millis(1))), Some(Role::Operate));
        assert_eq!(role(moment().plus(hour)), None);
        let jumped = Moment { wall: moment().wall.plus(DAY), ..moment() };
        assert_eq!(role(jumped), Some(Role::Operate), "the wall clock jumped");
    }

    #[test]
    fn after_a_reboot_a_token_lives_for_the_time_that_remained() {
        let (snapshot, _) = with_token(&request(Some(7200)));
        let stored = snapshot.tokens.values().next().unwrap();
        let hour = Duration::from_secs(3600);
        assert_eq!(rebased(stored, moment().plus(hour)), **stored, "nothing to do in the same boot");
        let booted = Moment { boot_id: 2, ..moment().plus(hour) };
        let after = rebased(stored, booted);
        assert!(!has_expired(&after, booted.plus(hour - Duration::from_millis(1))));
        assert!(has_expired(&after, booted.plus(hour)));
        assert_eq!(after.token.expires_at, stored.token.expires_at);
    }

    #[test]
    fn names_and_ids_are_unique() {
        let (snapshot, _) = with_token(&ApiTokenRequest { name: Some("ci".parse().unwrap()), ..request(None) });
        let id = snapshot.tokens.keys().next().unwrap();
        for name in ["ci", id] {
            let again = ApiTokenRequest { name: Some(name.parse().unwrap()), ..request(None) };
            assert!(matches!(new(&snapshot, &again, moment()), Err(Error::TokenExists(_))), "{name}");
        }
    }

    #[test]
    fn an_expiry_out_of_range_is_invalid() {
        for seconds in [0, u64::MAX] {
            let refused = new(&Snapshot::default(), &request(Some(seconds)), moment());
            assert!(matches!(refused, Err(Error::Invalid(e)) if e.field == "expires_in_seconds"), "{seconds}");
        }
    }
}
