//! Hexadecimal text as the protocol's description and the captured data write it.

/// The bytes of `text`; blanks and line ends are skipped.
///
/// # Panics
/// When the text is not hexadecimal.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| {
            u8::try_from(c.to_digit(16).unwrap_or_else(|| panic!("no hex digit: {c:?} in {text}"))).unwrap()
        })
        .collect();
    assert!(digits.len().is_multiple_of(2), "odd number of hex digits: {text}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// `bytes` as hexadecimal text, shortened when long.
pub fn show(bytes: &[u8]) -> String {
    const SHOWN: usize = 200;
    let mut text: String = bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() > SHOWN {
        text.push_str(&format!("... ({} bytes)", bytes.len()));
    }
    text
}

/// All readings of a text in which `(unit)*count` means a repeated unit.
///
/// The count is decimal and may be followed by hexadecimal digits without a mark between them, so
/// that `(00)*1082` may be 10 zero bytes and `82`, or 1,082 zero bytes. The caller knows what makes
/// sense.
pub fn readings(text: &str) -> Vec<Vec<u8>> {
    let Some(open) = text.find('(') else {
        return if text.len().is_multiple_of(2) { vec![hex(text)] } else { Vec::new() };
    };
    if !open.is_multiple_of(2) {
        return Vec::new();
    }
    let close = text.find(")*").expect("a repeated unit ends with )*");
    let unit = hex(&text[open + 1..close]);
    let rest = &text[close + 2..];
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count().min(7);
    let mut all = Vec::new();
    for taken in (1..=digits).rev() {
        let count: usize = rest[..taken].parse().unwrap();
        for tail in readings(&rest[taken..]) {
            let mut bytes = hex(&text[..open]);
            bytes.extend(unit.iter().copied().cycle().take(unit.len() * count));
            bytes.extend(tail);
            all.push(bytes);
        }
    }
    all
}
