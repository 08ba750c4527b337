//! The cluster's certificate authority, derived from its token: every holder of the token has the authority, and
//! issues its own certificate.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use ring::digest::{SHA256, digest};
use ring::hkdf;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{KeyError, Token};
use crate::types::{Name, NodeId};

/// The DNS name in every node's certificate. A URI beside it says which node it is.
pub(super) const SERVER_NAME: &str = "ostler.internal";
/// The prefix of the URI that names a node.
const NODE_URI: &str = "ostler://node/";
/// Part of the salt: another scheme gives another authority.
const SCHEME: &str = "ostler/v1/";
/// The purpose of the derived key, as HKDF's info.
const KEY_LABEL: &[u8] = b"ostler certificate authority, Ed25519, v1";
/// PKCS#8 of an Ed25519 key, up to its seed (RFC 8410, §7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// The validity of certificates, so wide that no host's clock is outside.
pub(super) const FIRST_YEAR: i32 = 2000;
pub(super) const LAST_YEAR: i32 = 4000;
/// How the name of an authority begins; its key id follows.
const AUTHORITY: &str = "ostler authority ";
/// Bytes of the public key's hash in the key id.
const KEY_ID_BYTES: usize = 8;

/// The authority of one cluster and one token.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key_id: String,
}

impl Authority {
    /// Takes some 50 ms and 19 MiB, because guessing tokens must be slow. The cluster's name is part of
    /// the key, so that two clusters never mix, even with the same token.
    pub(super) fn derive(token: &Token, cluster: &Name) -> Result<Self, KeyError> {
        let salt = digest(&SHA256, format!("{SCHEME}{cluster}").as_bytes());
        let mut stretched = [0; 32];
        argon2::Argon2::default()
            .hash_password_into(token.secret().as_bytes(), salt.as_ref(), &mut stretched)
            .map_err(|e| KeyError(e.to_string()))?;
        let mut pkcs8 = PKCS8_PREFIX.to_vec();
        pkcs8.extend_from_slice(&expand(&stretched)?);
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8))?;
        let key_id = data_encoding::HEXLOWER.encode(&digest(&SHA256, key.public_key_raw()).as_ref()[..KEY_ID_BYTES]);
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("{AUTHORITY}{key_id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        valid_for_ever(&mut params);
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate, key_id })
    }

    /// A certificate that names the node, and its key.
    pub(super) fn issue(&self, node: &NodeId) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), KeyError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
        let uri = format!("{NODE_URI}{node}");
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        params.distinguished_name = named(node.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        valid_for_ever(&mut params);
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok((certificate, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }
}

/// The key id that a certificate names as its authority's. Nobody has checked the signature: a stranger may name any.
pub(super) fn key_id_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let (issuer, name) = (certificate.issuer(), AUTHORITY.as_bytes());
    let at = issuer.windows(name.len()).position(|window| window == name)? + name.len();
    let id = issuer.get(at..at + 2 * KEY_ID_BYTES)?;
    let is_hex = id.iter().all(u8::is_ascii_hexdigit);
    is_hex.then(|| String::from_utf8_lossy(id).into_owned())
}

/// The node that a certificate names. The handshake has checked that the cluster's authority signed it.
pub fn node_of(certificate: &[u8]) -> Option<NodeId> {
    let certificate = CertificateDer::from(certificate);
    let certificate = webpki::EndEntityCert::try_from(&certificate).ok()?;
    certificate.valid_uri_names().find_map(|uri| uri.strip_prefix(NODE_URI)?.parse().ok())
}

fn expand(stretched: &[u8; 32]) -> Result<[u8; 32], KeyError> {
    let failed = |_| KeyError("the key cannot be derived".to_owned());
    let mut seed = [0; 32];
    let secret = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, stretched);
    let expanded = secret.expand(&[KEY_LABEL], hkdf::HKDF_SHA256).map_err(failed)?;
    expanded.fill(&mut seed).map_err(failed)?;
    Ok(seed)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn valid_for_ever(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(FIRST_YEAR, 1, 1);
    params.not_after = rcgen::date_time_ymd(LAST_YEAR, 1, 1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::generate;

    #[test]
    fn the_authority_depends_on_token_and_cluster_only() {
        let (token, other) = (generate().unwrap(), generate().unwrap());
        let id = |token: &Token, cluster: &str| Authority::derive(token, &cluster.parse().unwrap()).unwrap().key_id;
        assert_eq!(id(&token, "a"), id(&token, "a"));
        assert_ne!(id(&token, "a"), id(&token, "b"), "the cluster's name is part of the key");
        assert_ne!(id(&token, "a"), id(&other, "a"));
    }

    #[test]
    fn a_certificate_names_its_authority() {
        let authority = Authority::derive(&generate().unwrap(), &"c".parse().unwrap()).unwrap();
        let (certificate, _) = authority.issue(&NodeId::from_bytes([7; 10])).unwrap();
        assert_eq!(key_id_of(&certificate), Some(authority.key_id));
        assert_eq!(key_id_of(&CertificateDer::from(b"garbage".as_slice())), None);
    }

    #[test]
    fn a_certificate_names_its_node() {
        let node = NodeId::from_bytes([7; 10]);
        let authority = Authority::derive(&generate().unwrap(), &"c".parse().unwrap()).unwrap();
        let (certificate, _) = authority.issue(&node).unwrap();
        assert_eq!(node_of(&certificate), Some(node));
        assert_eq!(node_of(&authority.certificate), None);
        assert_eq!(node_of(b"garbage"), None);
    }
}
