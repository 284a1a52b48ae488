//! Fuzz targets: functions that take any bytes and panic when what must hold does not.
//!
//! Never in a server: they are built for tests, and for the runner in the folder `fuzz`. Whoever
//! writes a parser of bytes from outside adds one.

#[path = "../../../fuzz/src/inputs.rs"]
mod inputs;

use rustls::pki_types::CertificateDer;

use crate::{inspect, net};

use self::inputs::unhex;

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: &[(&str, Target)] =
    &[("certificates", inspect::fuzz::text), ("x509", x509), ("retry_after", net::fuzz)];

/// What is as it should be, or nearly: what bytes are made of. Certificates are there as users send
/// them and, with a line's end behind them, as the digits of their bytes.
pub const SEEDS: &[&str] = &[
    "\n",
    "120",
    "Fri, 31 Dec 1999 23:59:59 GMT",
    "-----BEGIN PRIVATE KEY-----\n",
    CERTIFICATE,
    CERTIFICATE_DIGITS,
    AUTHORITY_DIGITS,
];

/// One of a host, for `shop.example` and the names below it.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n\
     MIIBtTCCAVugAwIBAgIUYw/2pO3jR0ktCilHqz2LJABqWGMwCgYIKoZIzj0EAwIw\n\
     HDEOMAwGA1UECgwFUGVyY2gxCjAIBgNVBAMMAWEwIBcNMjYxMTI3MTQ1OTExWhgP\n\
     MjEyNjExMDMxNDU5MTFaMBwxDjAMBgNVBAoMBVBlcmNoMQowCAYDVQQDDAFhMFkw\n\
     EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE0T9kNLPikGGRsWzU1RrIzg3tG72gcV01\n\
     xMtlSZK+qKSRd2SwB/q9iskRCRiFZXGMQ0awa2nhkpGr0+htqfFW4KN5MHcwHQYD\n\
     VR0OBBYEFODuOlHisBbAzlsLkEzghib2G4H2MB8GA1UdIwQYMBaAFODuOlHisBbA\n\
     zlsLkEzghib2G4H2MCcGA1UdEQQgMB6CDHNob3AuZXhhbXBsZYIOKi5zaG9wLmV4\n\
     YW1wbGUwDAYDVR0TAQH/BAIwADAKBggqhkjOPQQDAgNIADBFAiEAuzFwlC+G/evF\n\
     +rTJVFceuGkXEat8ei5aJGHBnUvPcIECIGQKugXksIP9zDski/BE97C+i/zSvPNy\n\
     5kDDqCFHE20D\n\
     -----END CERTIFICATE-----\n";
/// The same.
const CERTIFICATE_DIGITS: &str = "308201b53082015ba0030201020214630ff6a4ede347492d0a2947ab3d8b24006a5863300a06082a8648ce3d\
    040302301c310e300c060355040a0c055065726368310a300806035504030c01613020170d32363131323731\
    34353931315a180f32313236313130333134353931315a301c310e300c060355040a0c055065726368310a30\
    0806035504030c01613059301306072a8648ce3d020106082a8648ce3d03010703420004d13f6434b3e29061\
    91b16cd4d51ac8ce0ded1bbda0715d35c4cb654992bea8a4917764b007fabd8ac91109188565718c4346b06b\
    69e19291abd3e86da9f156e0a3793077301d0603551d0e04160414e0ee3a51e2b016c0ce5b0b904ce08626f6\
    1b81f6301f0603551d23041830168014e0ee3a51e2b016c0ce5b0b904ce08626f61b81f630270603551d1104\
    20301e820c73686f702e6578616d706c65820e2a2e73686f702e6578616d706c65300c0603551d130101ff04\
    023000300a06082a8648ce3d0403020348003045022100bb3170942f86fdebc5fab4c954571eb8691711ab7c\
    7a2e5a2461c19d4bcf70810220640aba05e4b083fdcc3b248bf044f7b0be8bfcd2bcf372e640c3a82147136d\
    03\n";
/// One of an authority for `a.example` alone.
const AUTHORITY_DIGITS: &str = "308201c430820169a00302010202141a0c0723705c0b4506a7b1782bebe911da36b23b300a06082a8648ce3d\
    040302300c310a300806035504030c01613020170d3236313132373134353931315a180f3231323631313033\
    3134353931315a300c310a300806035504030c01613059301306072a8648ce3d020106082a8648ce3d030107\
    03420004d13f6434b3e2906191b16cd4d51ac8ce0ded1bbda0715d35c4cb654992bea8a4917764b007fabd8a\
    c91109188565718c4346b06b69e19291abd3e86da9f156e0a381a63081a3301d0603551d0e04160414e0ee3a\
    51e2b016c0ce5b0b904ce08626f61b81f6301f0603551d23041830168014e0ee3a51e2b016c0ce5b0b904ce0\
    8626f61b81f630120603551d130101ff040830060101ff020100304d0603551d1e0101ff04433041a00d300b\
    8209612e6578616d706c65a130300a8708000000000000000030228720000000000000000000000000000000\
    0000000000000000000000000000000000300a06082a8648ce3d040302034900304602210087ac392817d454\
    a4320d92d5a824c926bde97d52743268fd78f1e565ff796778022100ca58c6d73b102854c5580a101e7c0ad1\
    5c8c1365d042302472ee4858d6329ef3\n";

fn x509(bytes: &[u8]) {
    inspect::fuzz::der(&CertificateDer::from(unhex(bytes)));
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn run(bytes: &[u8]) {
        for (_, target) in TARGETS {
            target(bytes);
        }
    }

    #[test]
    fn seeds_hold() {
        for seed in SEEDS {
            run(seed.as_bytes());
        }
        // Else the targets would look at nothing.
        let leaf = inspect::issued(CERTIFICATE).unwrap();
        let der = STANDARD.encode(unhex(CERTIFICATE_DIGITS.as_bytes()));
        let pem = format!("-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n");
        assert_eq!(inspect::issued(&pem).unwrap(), leaf);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_bytes_hold(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            run(&bytes);
        }

        #[test]
        fn changed_seeds_hold(bytes in inputs::changed(SEEDS)) {
            run(&bytes);
        }
    }
}
