//! OCSP responses from files, to be stapled to certificates (RFC 6960, RFC 8446 section 4.4.2.1).
//!
//! Checks what an operator can get wrong: another certificate's response, an old one, one that is no good news. The
//! signature is the client's to check. Asks no responder: a timer of the operator's fetches the file.

use std::time::{Duration, SystemTime};

use der::Decode as _;
use x509_ocsp::{BasicOcspResponse, CertStatus, OcspResponse, OcspResponseStatus, SingleResponse};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How far the responder's clock may be ahead of ours.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);

/// A response that can be sent with its certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Staple {
    /// The response in DER, as it stands in the file.
    pub der: Vec<u8>,
    /// When there should be a newer one; clients refuse it from then on. None: the responder does not say.
    pub next_update: Option<SystemTime>,
}

/// Why a file is not stapled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Unusable {
    /// It is no OCSP response: a mistake.
    Broken,
    /// It is one, but of no use to clients: the certificate is better shown without it. Says why.
    Useless(String),
}

impl Staple {
    /// Checks a response for the certificate `leaf` (DER).
    ///
    /// # Errors
    /// When it should not be sent.
    pub(super) fn new(der: Vec<u8>, leaf: &[u8], now: SystemTime) -> Result<Staple, Unusable> {
        let response = OcspResponse::from_der(&der).map_err(|_| Unusable::Broken)?;
        let useless = |why: &str| Err(Unusable::Useless(why.to_owned()));
        if response.response_status != OcspResponseStatus::Successful {
            return useless(&format!("says only {:?}", response.response_status));
        }
        let bytes = response.response_bytes.ok_or(Unusable::Broken)?;
        let basic = BasicOcspResponse::from_der(bytes.response.as_bytes()).map_err(|_| Unusable::Broken)?;
        let Some(single) = basic.tbs_response_data.responses.iter().find(|single| is_about(single, leaf)) else {
            return useless("is about another certificate");
        };
        match single.cert_status {
            CertStatus::Good(_) => {}
            CertStatus::Revoked(_) => return useless("says that the certificate is revoked"),
            CertStatus::Unknown(_) => return useless("says that the responder does not know the certificate"),
        }
        if single.this_update.0.to_system_time() > now + CLOCK_SKEW_MAX {
            return useless("is from the future");
        }
        let next_update = single.next_update.map(|at| at.0.to_system_time());
        if next_update.is_some_and(|at| at <= now) {
            return useless("has expired");
        }
        Ok(Staple { der, next_update })
    }

    /// Whether it still can be sent with this certificate at `now`.
    pub(super) fn is_usable(&self, leaf: &[u8], now: SystemTime) -> bool {
        Staple::new(self.der.clone(), leaf, now).is_ok()
    }
}

/// By serial number: the operator gives both files, so nobody gains by a clash between two authorities.
fn is_about(single: &SingleResponse, leaf: &[u8]) -> bool {
    let serial = single.cert_id.serial_number.as_bytes();
    X509Certificate::from_der(leaf).is_ok_and(|(_, leaf)| {
        let strip = |bytes: &[u8]| bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        let own = leaf.raw_serial();
        serial[strip(serial)..] == own[strip(own)..]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::certificates::{DevelopmentCa, Usage};
    use der::asn1::{BitString, GeneralizedTime, Null, ObjectIdentifier, OctetString};
    use der::{DateTime, Encode as _};
    use x509_ocsp::{CertId, OcspGeneralizedTime, ResponderId, ResponseData, Version};

    fn at(time: SystemTime) -> OcspGeneralizedTime {
        let whole = DateTime::from_system_time(time).expect("a time of this century");
        OcspGeneralizedTime(GeneralizedTime::from_date_time(whole))
    }

    /// A response about the certificate with this serial number; the signature is a stranger's.
    fn response(serial: &[u8], status: CertStatus, from: SystemTime, until: Option<SystemTime>) -> Vec<u8> {
        let text = |bytes: &[u8]| OctetString::new(bytes).expect("a few bytes");
        let algorithm = || x509_ocsp_algorithm(ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"));
        let single = SingleResponse {
            cert_id: CertId {
                hash_algorithm: algorithm(),
                issuer_name_hash: text(&[1; 20]),
                issuer_key_hash: text(&[2; 20]),
                serial_number: der_serial(serial),
            },
            cert_status: status,
            this_update: at(from),
            next_update: until.map(at),
            single_extensions: None,
        };
        let basic = BasicOcspResponse {
            tbs_response_data: ResponseData {
                version: Version::V1,
                responder_id: ResponderId::ByKey(text(&[3; 20])),
                produced_at: at(from),
                responses: vec![single],
                response_extensions: None,
            },
            signature_algorithm: algorithm(),
            signature: BitString::from_bytes(&[4; 64]).expect("a few bytes"),
            certs: None,
        };
        let whole = OcspResponse::successful(basic).expect("it can be encoded");
        whole.to_der().expect("it can be encoded")
    }

    /// Through their own encoding, so that the crates of these types need not be named.
    fn x509_ocsp_algorithm<T: for<'d> der::Decode<'d>>(oid: ObjectIdentifier) -> T {
        let oid = oid.to_der().expect("a known one");
        let length = u8::try_from(oid.len()).expect("a short one");
        T::from_der(&[&[0x30, length], oid.as_slice()].concat()).expect("a sequence of one OID")
    }

    fn der_serial<T: for<'d> der::Decode<'d>>(bytes: &[u8]) -> T {
        let length = u8::try_from(bytes.len()).expect("a serial number is short");
        T::from_der(&[&[0x02, length], bytes].concat()).expect("an integer")
    }

    #[test]
    fn only_good_news_of_this_certificate_and_of_now_is_stapled() {
        let ca = DevelopmentCa::new().expect("an authority");
        let leaf = ca.issue("a", &[], Usage::Server).expect("a certificate").chain.remove(0);
        let serial = X509Certificate::from_der(&leaf).expect("our own").1.raw_serial().to_vec();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (day, good) = (Duration::from_secs(86_400), || CertStatus::Good(Null));
        let usable = response(&serial, good(), now - day, Some(now + day));
        let staple = Staple::new(usable.clone(), &leaf, now).expect("all is well");
        assert_eq!(staple, Staple { der: usable.clone(), next_update: Some(now + day) });
        assert!(staple.is_usable(&leaf, now) && !staple.is_usable(&leaf, now + day));
        assert!(Staple::new(response(&serial, good(), now, None), &leaf, now).is_ok());

        let why = |der: Vec<u8>| match Staple::new(der, &leaf, now).expect_err("it must not be sent") {
            Unusable::Broken => "broken".to_owned(),
            Unusable::Useless(why) => why,
        };
        assert_eq!(why(response(&[1, 2, 3], good(), now - day, Some(now + day))), "is about another certificate");
        assert_eq!(why(response(&serial, good(), now - day, Some(now))), "has expired");
        assert_eq!(why(response(&serial, good(), now + day, None)), "is from the future");
        assert!(why(response(&serial, CertStatus::Unknown(Null), now, None)).contains("does not know"));
        assert!(why(OcspResponse::try_later().to_der().expect("it can be encoded")).contains("TryLater"));
        for cut in [0, 1, usable.len() / 2, usable.len() - 1] {
            assert_eq!(why(usable[..cut].to_vec()), "broken", "{cut}");
        }
        assert_eq!(why(b"-----BEGIN".to_vec()), "broken");
    }
}
