//! When a certificate is valid. Reads only these two dates from the DER and judges nothing else:
//! clients decide whether a certificate is good; an operator only needs a warning in time.

use std::time::{Duration, SystemTime};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const EXPLICIT_VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The dates of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Validity {
    /// Reads the dates of an X.509 certificate (RFC 5280, section 4.1). `None` if they are not
    /// where they should be, or before 1970.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let (certificate, _) = element(SEQUENCE, certificate)?;
        let (mut fields, _) = element(SEQUENCE, certificate)?;
        if let Some((_, rest)) = element(EXPLICIT_VERSION, fields) {
            fields = rest;
        }
        // Serial number, signature algorithm, issuer.
        for tag in [INTEGER, SEQUENCE, SEQUENCE] {
            (_, fields) = element(tag, fields)?;
        }
        let (dates, _) = element(SEQUENCE, fields)?;
        let (not_before, dates) = time(dates)?;
        let (not_after, _) = time(dates)?;
        Some(Self { not_before, not_after })
    }
}

/// Splits `input` after its first element, if that has this tag: its content, and the rest.
fn element(tag: u8, input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&found, input) = input.split_first()?;
    if found != tag {
        return None;
    }
    let (&short, mut input) = input.split_first()?;
    let mut bytes = usize::from(short);
    if short >= 0x80 {
        // The long form: the number of bytes of the length. Three are enough for 16 MiB.
        let digits = usize::from(short & 0x7f);
        if !(1..=3).contains(&digits) {
            return None;
        }
        let (length, rest) = input.split_at_checked(digits)?;
        bytes = length.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        input = rest;
    }
    input.split_at_checked(bytes)
}

/// Reads `YYMMDDhhmmssZ`, where 50 to 99 is the last century, or `YYYYMMDDhhmmssZ`.
fn time(input: &[u8]) -> Option<(SystemTime, &[u8])> {
    let (year, digits, rest) = if let Some((text, rest)) = element(UTC_TIME, input) {
        let (year, digits) = text.split_at_checked(2)?;
        let year = number(year)?;
        (year + if year < 50 { 2000 } else { 1900 }, digits, rest)
    } else {
        let (text, rest) = element(GENERALIZED_TIME, input)?;
        let (year, digits) = text.split_at_checked(4)?;
        (number(year)?, digits, rest)
    };
    let (pairs, zone) = digits.as_chunks::<2>();
    let [month, day, hour, minute, second] = pairs else { return None };
    if zone != b"Z" {
        return None;
    }
    let days = days_since_1970(year, number(month)?, number(day)?)?;
    let seconds = ((days * 24 + number(hour)?) * 60 + number(minute)?) * 60 + number(second)?;
    Some((SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?, rest))
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |sum, digit| {
        if digit.is_ascii_digit() { Some(sum * 10 + u64::from(digit - b'0')) } else { None }
    })
}

/// Returns the days from 1970-01-01 to a date of the Gregorian calendar.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    const DAYS_BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leap_years_before = |year: u64| year / 4 - year / 100 + year / 400;
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let month = usize::try_from(month).ok()?.checked_sub(1)?;
    let before_month = DAYS_BEFORE_MONTH.get(month)? + u64::from(is_leap && month >= 2);
    let years = year.checked_sub(1970)?;
    Some(
        years * 365 + leap_years_before(year - 1) - leap_years_before(1969)
            + before_month
            + day.checked_sub(1)?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tag: u8, text: &str, unix: Option<u64>) {
        let mut der = vec![tag, u8::try_from(text.len()).unwrap()];
        der.extend_from_slice(text.as_bytes());
        let expect = unix.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(time(&der).map(|(time, _)| time), expect, "{text}");
    }

    #[test]
    fn dates_are_read_as_the_calendar_says() {
        // Seconds from `date -u -d ... +%s`.
        check(UTC_TIME, "700101000000Z", Some(0));
        check(UTC_TIME, "000229123456Z", Some(951_827_696));
        check(UTC_TIME, "491231235959Z", Some(2_524_607_999));
        check(UTC_TIME, "261123194749Z", Some(1_795_463_269));
        check(GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000));
        check(GENERALIZED_TIME, "21000301000000Z", Some(4_107_542_400));
        check(GENERALIZED_TIME, "40960101000000Z", Some(67_090_118_400));
        for bad in [
            "500101000000Z",
            "261323000000Z",
            "260023000000Z",
            "260100000000Z",
            "2601010000Z",
            "26010100000aZ",
            "260101000000X",
            "",
            "2",
        ] {
            check(UTC_TIME, bad, None);
        }
    }

    #[test]
    fn no_cut_of_a_certificate_panics() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let der = made.cert.der();
        assert!(Validity::of(der).is_some());
        for end in 0..der.len() {
            assert_eq!(Validity::of(&der[..end]), None, "{end}");
        }
    }

    #[test]
    fn the_dates_of_a_made_certificate_come_back() {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 3, 1);
        params.not_after = rcgen::date_time_ymd(2061, 12, 31);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let seconds = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let expect = Validity { not_before: seconds(1_772_323_200), not_after: seconds(2_903_212_800) };
        assert_eq!(Validity::of(certificate.der()), Some(expect));
    }
}
