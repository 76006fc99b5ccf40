//! Splits bytes into pieces, the same ones for the same seed.

/// Returns the lengths of pieces for `len` bytes: single bytes, short and long ones mixed.
pub(crate) fn cut(len: usize, seed: u32) -> Vec<usize> {
    let mut state = seed | 1;
    let mut pieces = Vec::new();
    let mut rest = len;
    while rest > 0 {
        // Xorshift: varied enough, without a dependency.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let most = match state % 4 {
            0 => 1,
            1 => 8,
            2 => 64,
            _ => 4096,
        };
        let piece = (1 + (state >> 8) as usize % most).min(rest);
        pieces.push(piece);
        rest -= piece;
    }
    pieces
}
