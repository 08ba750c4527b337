//! Whether a certificate is valid, and for which names: for the listener's, which another authority has issued.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage};

/// A Unix second after the end of every certificate: the first of the year 10000.
const NEVER: u64 = 253_402_300_800;

/// What keeps clients from accepting a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unfit {
    /// The names that it is not for.
    pub lacks: Vec<String>,
    /// It is not valid at the time of the check: why, for people.
    pub invalid: Option<String>,
    /// The Unix second of its end, if that is within the period that was asked about.
    pub ends: Option<u64>,
}

/// Checks names and period of a certificate at a Unix second. Its authority is not checked: clients choose whom they
/// trust. `soon`: an end within it is told.
///
/// # Errors
/// It is no X.509 certificate of version 3.
pub fn unfit(certificate: &CertificateDer<'_>, names: &[String], now: u64, soon: Duration) -> Result<Unfit, String> {
    let parsed = EndEntityCert::try_from(certificate).map_err(|error| error.to_string())?;
    let is_for = |name: &&String| {
        let name = ServerName::try_from(name.as_str());
        name.is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok())
    };
    let lacks = names.iter().filter(|name| !is_for(name)).cloned().collect();
    let invalid = match period(&parsed, now) {
        Some(Error::CertExpired { .. }) => Some("it has ended".to_owned()),
        Some(Error::CertNotValidYet { .. }) => {
            Some("its period has not begun: check the clock of this host".to_owned())
        }
        _ => None,
    };
    let ends = match period(&parsed, now.saturating_add(soon.as_secs())) {
        Some(Error::CertExpired { not_after, .. }) => Some(not_after.as_secs()),
        _ => None,
    };
    Ok(Unfit { lacks, invalid, ends })
}

/// The Unix second of the certificate's end; `None` if it is no X.509 certificate of version 3, or does not end.
pub fn end(certificate: &CertificateDer<'_>) -> Option<u64> {
    match period(&EndEntityCert::try_from(certificate).ok()?, NEVER) {
        Some(Error::CertExpired { not_after, .. }) => Some(not_after.as_secs()),
        _ => None,
    }
}

/// What is wrong at that time. The period is checked before the authority, of which none is given.
fn period(certificate: &EndEntityCert<'_>, at: u64) -> Option<Error> {
    let time = UnixTime::since_unix_epoch(Duration::from_secs(at));
    let (algorithms, usage) = (webpki::ALL_VERIFICATION_ALGS, KeyUsage::server_auth());
    certificate.verify_for_usage(algorithms, &[], &[], time, usage, None, None).err()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    #[test]
    fn names_and_the_end_of_a_certificate_are_told() {
        let names = ["host-a".to_owned(), "192.0.2.1".to_owned()];
        let mut params = rcgen::CertificateParams::new(names.to_vec()).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 3, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (begin, end) = (1_767_225_600, 1_772_323_200);
        assert_eq!(super::end(certificate.der()), Some(end));
        let at = |now| unfit(certificate.der(), &names, now, Duration::from_secs(14 * DAY)).unwrap();
        assert_eq!(at(begin + DAY), Unfit::default());
        assert_eq!(at(end - DAY), Unfit { ends: Some(end), ..Unfit::default() });
        assert_eq!(at(end + DAY).invalid.as_deref(), Some("it has ended"));
        assert!(at(begin - DAY).invalid.unwrap().starts_with("its period has not begun"));
        let others = ["host-b".to_owned(), "192.0.2.2".to_owned()];
        assert_eq!(unfit(certificate.der(), &others, begin + DAY, Duration::ZERO).unwrap().lacks, others);
        assert!(unfit(&CertificateDer::from(vec![1, 2, 3]), &names, begin, Duration::ZERO).is_err());
    }
}
