//! Figures as a text table.

use std::fmt::Write as _;

use crate::figures::{Row, Spread, Unit};

/// Appends a line per figure: of the server, of the reference, and their ratio.
pub(crate) fn figures(text: &mut String, rows: &[Row]) {
    let compared = rows.iter().any(|row| row.ratio.is_some());
    let _ = write!(text, "{:<36} {:>10} {:<26}", "", "measured", "");
    let _ = writeln!(
        text,
        "{}",
        if compared { format!("{:>10} {:>8}", "reference", "ratio") } else { String::new() }
    );
    for row in rows {
        let unit = unit(row.unit);
        let value = number(row.server.median);
        let _ = write!(text, "{:<36} {value:>10} {:<26}", row.name, format!("{unit}{}", range(&row.server)));
        if let (Some(reference), Some(ratio)) = (&row.reference, &row.ratio) {
            let (reference, median) = (number(reference.median), number(ratio.median));
            let _ = write!(text, "{reference:>10} {median:>8}{}", range(ratio));
        }
        let end = text.trim_end().len();
        text.truncate(end);
        text.push('\n');
    }
}

/// Formats a range; empty when all values are equal.
fn range(spread: &Spread) -> String {
    if spread.min.total_cmp(&spread.max).is_eq() {
        return String::new();
    }
    format!(" [{}..{}]", number(spread.min), number(spread.max))
}

/// Returns the symbol of a unit.
pub(crate) const fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::PerSecond => "/s",
        Unit::Count => "",
        Unit::Ratio => "x",
        Unit::Microseconds => "us",
        Unit::Milliseconds => "ms",
        Unit::Bytes => "B",
        Unit::Mebibytes => "MiB",
        Unit::Percent => "%",
    }
}

/// Formats a number with at least three significant digits, and with thousands separators.
pub(crate) fn number(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 || value == 0.0 {
        1
    } else {
        2
    };
    let plain = format!("{value:.digits$}");
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let mut out = String::new();
    for (at, digit) in whole.chars().enumerate() {
        let rest = whole.len() - at;
        if at > 0 && rest.is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    if fraction.bytes().any(|digit| digit != b'0') {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let check = |value: f64, expect: &str| assert_eq!(number(value), expect);
        check(0.0, "0");
        check(1.0, "1");
        check(0.256, "0.26");
        check(9.87, "9.87");
        check(12.34, "12.3");
        check(123.4, "123");
        check(18_000.0, "18,000");
        check(1_234_567.8, "1,234,568");
        check(-1234.0, "-1,234");
    }

    #[test]
    fn a_row_ends_with_its_ratio() {
        let spread = |median, min, max| Spread { median, min, max };
        let row = |reference, ratio| Row {
            name: "server CPU per delivery",
            unit: Unit::Microseconds,
            server: spread(6.0, 5.0, 7.0),
            reference,
            ratio,
        };
        let check = |row: Row, expect: &[&str]| {
            let mut text = String::new();
            figures(&mut text, &[row]);
            let line = text.lines().nth(1).unwrap();
            assert_eq!(line.split_whitespace().collect::<Vec<_>>(), expect, "{text}");
        };
        let columns = ["server", "CPU", "per", "delivery", "6", "us", "[5..7]", "4", "1.50", "[1.40..1.60]"];
        check(row(Some(spread(4.0, 4.0, 4.0)), Some(spread(1.5, 1.4, 1.6))), &columns);
        check(row(None, None), &columns[..7]);
    }
}
