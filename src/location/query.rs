//! The queries of URLs: `a=b&c`, percent-encoded.

/// The bytes that a percent-encoded text stands for. A `%` without two digits after it is itself.
pub fn decode(text: &str) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&(mut byte), after)) = rest.split_first() {
        let digit = |place: usize| (*after.get(place)? as char).to_digit(16);
        (byte, rest) = match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => ((high * 16 + low) as u8, &after[2..]),
            _ => (byte, after),
        };
        decoded.push(byte);
    }
    decoded
}

/// Names and values in the order they are written; `None` where there is no value.
pub(super) fn pairs(query: &str) -> Vec<(String, Option<String>)> {
    let text = |part: &str| String::from_utf8_lossy(&decode(&part.replace('+', " "))).into_owned();
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| match part.split_once('=') {
            Some((name, value)) => (text(name), Some(text(value)).filter(|value| !value.is_empty())),
            None => (text(part), None),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded() {
        let pairs = pairs("a=b%2Fc&d&&e=&f+g=h+i%zz");
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        assert_eq!(pairs, [("a", Some("b/c")), ("d", None), ("e", None), ("f g", Some("h i%zz"))]);
    }
}
