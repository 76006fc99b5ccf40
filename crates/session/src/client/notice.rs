//! Reads the code of a disconnect packet, without a JSON library.

/// Returns the member `code` of the body of operation 6; `None` if the body is no JSON object, or
/// has no such member with a number from 0 to 65535.
#[must_use]
pub fn disconnect_code(body: &[u8]) -> Option<u16> {
    let mut depth = 0_usize;
    let mut rest = body;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'{' | b'[' => depth = depth.saturating_add(1),
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let (text, behind) = string(rest)?;
                rest = behind;
                let member = behind.trim_ascii_start().strip_prefix(b":");
                if let (1, b"code", Some(value)) = (depth, text, member) {
                    return number(value.trim_ascii_start());
                }
            }
            _ => {}
        }
    }
    None
}

/// Returns a string after its opening quote, escapes left as they are, and the bytes after the
/// closing quote.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    let end = bytes.iter().position(|&byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })?;
    Some((bytes.get(..end)?, bytes.get(end.checked_add(1)?..)?))
}

/// Parses the digits at the front, unless they are part of another value.
fn number(bytes: &[u8]) -> Option<u16> {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(bytes.len());
    let (digits, behind) = bytes.split_at_checked(end)?;
    if matches!(behind.first(), Some(b'.' | b'e' | b'E')) {
        return None;
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::disconnect_code;

    #[test]
    fn the_code_is_the_member_of_the_object_itself() {
        let check = |body: &str, expect| assert_eq!(disconnect_code(body.as_bytes()), expect, "{body}");
        check(r#"{"code":3500,"reason":"superseded"}"#, Some(3500));
        check(r#"{ "reason" : "a \"code\":1 \\" , "code" : 3002 }"#, Some(3002));
        check(r#"{"inner":{"code":1},"list":["code",{"code":2}],"code":3}"#, Some(3));
        check(r#"{"reason":"code","delay_ms":7}"#, None);
        check(r#"{"code":"3500"}"#, None);
        check(r#"{"code":3.5}"#, None);
        check(r#"{"code":-1}"#, None);
        check(r#"{"code":70000}"#, None);
        check(r#"{"code"#, None);
        check("", None);
        check("]]]{\"code\":9}", Some(9));
    }
}
