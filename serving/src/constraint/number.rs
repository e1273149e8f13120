//! A decimal number within a range.
//!
//! The text is `-?(0|[1-9][0-9]*)(\.[0-9]+)?`: no exponent, no leading zeros, no plus, no negative zero. It has at most 15
//! digits before the point. After it a number that need not be whole has at most 6, or as many as the bounds have, though no
//! more than 12; so an answer always comes to an end. A token may follow if some number of the range begins with the text
//! written so far and the token. That is decided in exact arithmetic on whole multiples of the last decimal place.

use std::sync::Arc;

use super::{Constraint, Next};
use crate::error::{Error, Result};
use crate::request::TokenId;
use crate::tokenizer::Tokenizer;

/// The most digits before the point.
const WHOLE_DIGITS: u32 = 15;
/// Digits after the point, unless the bounds have more.
const DECIMALS: u32 = 6;
/// The most digits after the point.
const DECIMALS_MAX: u32 = 12;

/// The numbers that are allowed, as multiples of `10^-decimals`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NumberRange {
    low: i128,
    high: i128,
    decimals: u32,
}

impl NumberRange {
    /// Takes bounds, which may be infinite. Fails if no number lies between them that can be written.
    pub(super) fn new(min: f64, max: f64, integer: bool) -> Result<Self> {
        let limit = 10_f64.powi(WHOLE_DIGITS as i32) - 1.0;
        let empty = || {
            let kind = if integer { "whole number" } else { "number" };
            Error::Invalid(format!("no {kind} of up to {WHOLE_DIGITS} digits lies between {min} and {max}"))
        };
        // NaN fails this as well.
        if !(min <= max && min <= limit && max >= -limit) {
            return Err(empty());
        }
        let bounds = [min, max].map(|bound| Decimal::new(bound.clamp(-limit, limit)));
        let decimals = match integer {
            true => 0,
            false => bounds.iter().map(|bound| bound.decimals).fold(DECIMALS, u32::max).min(DECIMALS_MAX),
        };
        let range = NumberRange { low: bounds[0].scaled(decimals, true), high: bounds[1].scaled(decimals, false), decimals };
        if range.low > range.high { Err(empty()) } else { Ok(range) }
    }

    /// Returns all numbers of the range if they are whole and at most `limit`.
    pub(super) fn whole_numbers(&self, limit: i128) -> Option<Vec<String>> {
        let few = self.decimals == 0 && self.high - self.low < limit;
        few.then(|| (self.low..=self.high).map(|number| number.to_string()).collect())
    }

    /// Returns the least and the greatest magnitude of one sign.
    fn magnitudes(&self, negative: bool) -> (i128, i128) {
        if negative { ((-self.high).max(1), -self.low) } else { (self.low.max(0), self.high) }
    }
}

/// A bound, exactly as its shortest decimal form says: what a user wrote, not its nearest binary fraction.
struct Decimal {
    negative: bool,
    /// Digits before and after the point.
    digits: String,
    /// How many of them stand after it.
    decimals: u32,
}

impl Decimal {
    fn new(value: f64) -> Self {
        let text = value.abs().to_string();
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        Decimal { negative: value < 0.0, digits: format!("{whole}{fraction}"), decimals: fraction.len() as u32 }
    }

    /// Returns the value in multiples of `10^-decimals`, rounded up or down.
    fn scaled(&self, decimals: u32, up: bool) -> i128 {
        let kept = self.digits.len().saturating_sub(self.decimals.saturating_sub(decimals) as usize);
        let (kept, cut) = self.digits.split_at(kept);
        let magnitude = kept.bytes().fold(0, |value: i128, digit| value * 10 + i128::from(digit - b'0'));
        let magnitude = magnitude * 10_i128.pow(decimals.saturating_sub(self.decimals));
        let away_from_zero = i128::from(cut.bytes().any(|digit| digit != b'0') && up != self.negative);
        if self.negative { -(magnitude + away_from_zero) } else { magnitude + away_from_zero }
    }
}

/// What has been written of a number.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    negative: bool,
    /// All digits so far, read as one whole number.
    digits: i128,
    /// Digits before the point.
    whole: u32,
    /// Digits after the point, once it is there.
    decimals: Option<u32>,
}

impl Written {
    /// Returns the text with one more character, if that still is the beginning of a number.
    fn push(mut self, byte: u8, range: &NumberRange) -> Option<Self> {
        match (byte, self.decimals) {
            (b'-', None) if self.whole == 0 && !self.negative => self.negative = true,
            (b'.', None) if self.whole > 0 && range.decimals > 0 => self.decimals = Some(0),
            (b'0'..=b'9', None) if self.whole < WHOLE_DIGITS && !(self.whole == 1 && self.digits == 0) => self.whole += 1,
            (b'0'..=b'9', Some(decimals)) if decimals < range.decimals => self.decimals = Some(decimals + 1),
            _ => return None,
        }
        if byte.is_ascii_digit() {
            self.digits = self.digits * 10 + i128::from(byte - b'0');
        }
        Some(self)
    }

    /// Returns whether some number of the range begins like this.
    fn is_possible(&self, range: &NumberRange) -> bool {
        let (least, greatest) = range.magnitudes(self.negative);
        if self.whole == 0 {
            return least <= greatest;
        }
        // Whole digits may still follow before the point comes, unless the number begins with zero.
        let more = if self.decimals.is_some() || self.digits == 0 { 0 } else { WHOLE_DIGITS - self.whole };
        (0..=more).any(|more| {
            let unit = self.unit(range) * 10_i128.pow(more);
            self.digits * unit <= greatest && least < (self.digits + 1) * unit
        })
    }

    /// Returns whether this is a number of the range.
    fn is_number(&self, range: &NumberRange) -> bool {
        let (least, greatest) = range.magnitudes(self.negative);
        let value = self.digits * self.unit(range);
        self.whole > 0 && self.decimals != Some(0) && least <= value && value <= greatest
    }

    /// Returns what the last digit counts, in multiples of the range's last decimal place.
    fn unit(&self, range: &NumberRange) -> i128 {
        10_i128.pow(range.decimals - self.decimals.unwrap_or(0))
    }
}

/// How far one request has come with its number.
#[derive(Clone, Debug)]
pub(super) struct Number {
    range: NumberRange,
    written: Written,
    /// Tokens of digits, points and signs.
    tokens: Arc<[(TokenId, Box<[u8]>)]>,
    end_tokens: Arc<[TokenId]>,
}

impl Number {
    /// Starts with nothing written. Fails if the tokenizer cannot write each digit by itself.
    pub(super) fn new(range: NumberRange, tokenizer: &dyn Tokenizer) -> Result<Self> {
        let tokens = number_tokens(tokenizer);
        let has = |byte: u8| tokens.iter().any(|(_, bytes)| **bytes == [byte]);
        if !b"0123456789.-".iter().all(|byte| has(*byte)) || tokenizer.end_tokens().is_empty() {
            return Err(Error::Invalid(
                "the model's tokens cannot write every number, or none of them ends an answer".to_owned(),
            ));
        }
        let end_tokens = tokenizer.end_tokens().into();
        Ok(Number { range, written: Written::default(), tokens: tokens.into(), end_tokens })
    }

    fn with(&self, written: Written, bytes: &[u8]) -> Option<Written> {
        let written = bytes.iter().try_fold(written, |written, byte| written.push(*byte, &self.range))?;
        written.is_possible(&self.range).then_some(written)
    }

    fn following(&self, written: Written) -> Vec<(TokenId, Written)> {
        let follow = |(token, bytes): &(TokenId, Box<[u8]>)| Some((*token, self.with(written, bytes)?));
        self.tokens.iter().filter_map(follow).collect()
    }
}

/// Returns the tokens that consist of digits, points and signs and that the tokenizer itself would write, in ascending order.
fn number_tokens(tokenizer: &dyn Tokenizer) -> Vec<(TokenId, Box<[u8]>)> {
    let tokens = (0..tokenizer.vocab_size() as TokenId).map(|token| (token, tokenizer.token_bytes(token)));
    let parts = tokens.filter(|(_, bytes)| !bytes.is_empty() && bytes.iter().all(|byte| b"0123456789.-".contains(byte)));
    let own = parts.filter(|(token, bytes)| tokenizer.encode(&String::from_utf8_lossy(bytes)) == [*token]);
    own.map(|(token, bytes)| (token, bytes.into())).collect()
}

impl Constraint for Number {
    fn next(&mut self) -> Result<Next> {
        let (mut written, mut forced) = (self.written, Vec::new());
        loop {
            let ends = written.is_number(&self.range);
            match self.following(written).as_slice() {
                [] => return Ok(Next::Finish(forced)),
                [(token, then)] if !ends => {
                    forced.push(*token);
                    written = *then;
                }
                _ if !forced.is_empty() => return Ok(Next::Forced(forced)),
                several => {
                    let ends = self.end_tokens.iter().copied().filter(|_| ends);
                    let mut tokens: Vec<_> = several.iter().map(|(token, _)| *token).chain(ends).collect();
                    tokens.sort_unstable();
                    return Ok(Next::OneOf(tokens));
                }
            }
        }
    }

    fn accept(&mut self, token: TokenId) -> Result<()> {
        let found = self.tokens.iter().find(|(id, _)| *id == token);
        let then = found.and_then(|(_, bytes)| self.with(self.written, bytes));
        self.written = then.ok_or_else(|| Error::Invalid(format!("token {token} continues no number of the range")))?;
        Ok(())
    }

    fn is_complete(&mut self) -> bool {
        self.written.is_number(&self.range)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::constraint::compile::tests::{MINI, write};

    fn number(min: f64, max: f64, integer: bool) -> Number {
        Number::new(NumberRange::new(min, max, integer).unwrap(), MINI.as_ref()).unwrap()
    }

    /// Whether the text can be written as a whole.
    fn accepts(number: &Number, text: &str) -> bool {
        let mut number = number.clone();
        MINI.encode(text).iter().all(|token| number.accept(*token).is_ok()) && number.is_complete()
    }

    #[track_caller]
    fn check((min, max, integer): (f64, f64, bool), right: &[&str], wrong: &[&str]) {
        let number = number(min, max, integer);
        right.iter().for_each(|text| assert!(accepts(&number, text), "{text}"));
        wrong.iter().for_each(|text| assert!(!accepts(&number, text), "{text}"));
    }

    #[test]
    fn numbers_of_the_range_and_no_others() {
        let odd = ["", "-", ".", "00", "01", "+1", "1.", ".5", "-0", "-0.0", "1e3", "--1", "1-", "1..2"];
        check((0.0, 1.0, false), &["0", "1", "0.5", "0.000001", "1.000000"], &["1.000001", "0.0000001", "2", "-0.1", "10"]);
        check((-10.5, 10.5, false), &["-10.5", "10.5", "-0.5", "0", "0.0", "9"], &["-10.500001", "10.6", "11", "100"]);
        check((-10.5, 10.5, false), &[], &odd);
        check((37.0, 412.0, true), &["37", "99", "100", "412"], &["36", "413", "3", "4", "1000", "37.0"]);
        check((-412.0, -37.0, true), &["-37", "-99", "-100", "-412"], &["-36", "-413", "37", "0"]);
        check((0.1, 0.3, false), &["0.1", "0.10", "0.3", "0.2999"], &["0", "0.0999", "0.300001", "0.31"]);
        check((1e-9, 2e-9, false), &["0.000000001", "0.000000002"], &["0", "0.0000000021", "0.000000003"]);
    }

    #[test]
    fn unbounded_ranges_end_after_fifteen_digits() {
        let any = (f64::NEG_INFINITY, f64::INFINITY, true);
        check(any, &["999999999999999", "-999999999999999", "0"], &["1000000000000000", "-1000000000000000"]);
        check((f64::MIN, f64::MAX, false), &["999999999999999", "0.123456"], &["999999999999999.1", "0.1234567"]);
    }

    #[test]
    fn what_is_without_choice_is_forced() {
        let forced = |min, max| number(min, max, false).next().unwrap();
        assert_eq!(forced(0.25, 0.3), Next::Forced(MINI.encode("0.")));
        assert!(matches!(forced(-1.0, 1.0), Next::OneOf(tokens) if tokens.len() == 3));
    }

    #[test]
    fn few_whole_numbers_are_listed() {
        let listed = |min, max| NumberRange::new(min, max, true).unwrap().whole_numbers(4);
        assert_eq!(listed(-1.5, 2.2), Some(vec!["-1".into(), "0".into(), "1".into(), "2".into()]));
        assert_eq!(listed(0.0, 4.0), None);
        assert_eq!(NumberRange::new(0.0, 1.0, false).unwrap().whole_numbers(4), None);
    }

    #[test]
    fn refuses_empty_ranges() {
        let nan = f64::NAN;
        for (min, max, integer) in
            [(1.0, 0.0, false), (0.2, 0.8, true), (nan, 1.0, false), (0.0, nan, false), (1e16, 1e17, true)]
        {
            assert!(matches!(NumberRange::new(min, max, integer), Err(Error::Invalid(_))), "{min} {max}");
        }
    }

    /// Bounds of all sizes, many of them short decimals.
    fn bound() -> impl Strategy<Value = f64> {
        prop_oneof![
            (-2000_i32..2000).prop_map(f64::from),
            (-2000_i32..2000, 0..5).prop_map(|(digits, places)| f64::from(digits) / 10_f64.powi(places)),
            (-1e18..1e18),
            any::<f64>().prop_filter("a number", |bound| !bound.is_nan()),
        ]
    }

    proptest! {
        #[test]
        fn random_numbers_parse_and_lie_in_the_range(
            a in bound(), b in bound(), integer: bool, picks in prop::collection::vec(any::<prop::sample::Index>(), 64),
        ) {
            let (min, max) = (a.min(b), a.max(b));
            let Ok(range) = NumberRange::new(min, max, integer) else { return Ok(()) };
            let mut number = Number::new(range, MINI.as_ref()).unwrap();
            let mut picks = picks.iter();
            let text = write(&mut number, 64, |allowed| allowed[picks.next().unwrap().index(allowed.len())]).unwrap();
            let value: f64 = text.parse().unwrap();
            prop_assert!(min <= value && value <= max, "{} not in {}..={}", text, min, max);
            prop_assert!(!integer || text.parse::<i64>().is_ok());
        }

        #[test]
        fn every_whole_number_of_a_range_can_be_written(a in -3000_i32..3000, b in -3000_i32..3000, c in -3000_i32..3000) {
            let number = number(f64::from(a.min(b)), f64::from(a.max(b)), true);
            prop_assert_eq!(accepts(&number, &c.to_string()), a.min(b) <= c && c <= a.max(b));
        }
    }
}
