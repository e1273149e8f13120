//! Text that says nothing: common English words in their usual proportions, and invented ones of syllables.
//!
//! How many tokens a character takes depends on how common its word is, so each kind of text has a share of invented words, with which
//! it takes as many tokens as the text that it stands for.

use crate::random::SplitMix64;

/// The most common words first, about as a page of English has them.
const COMMON: &str = "the of and to a in is that it for was on with as his he by at from her be this an are but has who not its which \
    one they their have all or more than about film into out story when time up so like what even there him can only most life man \
    been will if good no some much world just make over between first two made every family way through young love does well new \
    work after many other she people while years character also back own both little without where end long still never take find \
    most between against another real these old those us get too down any best great same part year day place before come how \
    feel become home friend night three high small black set might scene might director actor show play war live turn moment \
    woman child men girl boy city death heart house car full follow keep help try run lead face call bring tell come leave give \
    hand head eye water light sound voice music song sense kind point fact thing hard true dark quick strong clear simple large \
    early late near far under above across along around within during upon once again often always almost enough rather quite \
    because though since until whether yet perhaps together instead however course number order place power state school country \
    company system group problem question reason result change form level line side area body law name word book paper letter \
    price quality product cable battery screen phone charge button cover case box colour size weight length design style value";

/// Beginnings, middles and ends of invented syllables.
const ONSETS: [&str; 24] = [
    "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "br", "ch", "cr", "gr", "pl", "st",
    "tr",
];
const VOWELS: [&str; 10] = ["a", "e", "i", "o", "u", "a", "e", "o", "ai", "ea"];
const CODAS: [&str; 10] = ["", "", "", "n", "r", "l", "s", "t", "m", "ck"];

/// How many ranks the frequencies of words fall behind Zipf's law: the most common words stand for all those that are left out.
const OFFSET: f64 = 30.0;

/// Writes text.
pub(super) struct Words {
    common: Vec<&'static str>,
    /// The chance, cumulated, of each common word: by rank, as in Zipf's law.
    below: Vec<f64>,
}

impl Words {
    pub(super) fn new() -> Self {
        let common: Vec<&str> = COMMON.split_whitespace().collect();
        let mut sum = 0.0;
        let below = (1..=common.len())
            .map(|rank| {
                sum += 1.0 / (rank as f64 + OFFSET);
                sum
            })
            .collect();
        Self { common, below }
    }

    /// Returns a common word.
    pub(super) fn common(&self, random: &mut SplitMix64) -> &'static str {
        self.at(random.fraction())
    }

    /// Returns a word that sentences begin with: the more common of two.
    fn first(&self, random: &mut SplitMix64) -> &'static str {
        let (one, other) = (random.fraction(), random.fraction());
        self.at(one.min(other) * one.min(other))
    }

    /// Returns the word at this fraction of all occurrences, the most common first.
    fn at(&self, fraction: f64) -> &'static str {
        let at = fraction * self.below.last().copied().unwrap_or(0.0);
        self.common[self.below.partition_point(|below| *below <= at).min(self.common.len() - 1)]
    }

    /// Returns sentences of about so many characters, of which `invented` words in a hundred are invented.
    pub(super) fn prose(&self, characters: usize, invented: usize, random: &mut SplitMix64) -> String {
        let mut text = String::with_capacity(characters + 16);
        let mut words_left = 0;
        while text.len() < characters {
            if words_left == 0 {
                words_left = 6 + random.below(18);
                if !text.is_empty() {
                    text.push_str(". ");
                }
                text.push_str(&capitalised(self.first(random)));
            } else {
                text.push_str(if random.percent(6) { ", " } else { " " });
                let word = self.word(random, invented);
                text.push_str(&word);
            }
            words_left -= 1;
        }
        cut(&mut text, characters);
        text
    }

    /// Returns a title of about so many characters: words that begin with capitals, most of them invented.
    pub(super) fn title(&self, characters: usize, invented: usize, random: &mut SplitMix64) -> String {
        let mut text = String::with_capacity(characters + 16);
        while text.len() < characters {
            if !text.is_empty() {
                text.push(' ');
            }
            let word = self.word(random, invented);
            text.push_str(&capitalised(&word));
        }
        cut(&mut text, characters);
        text
    }

    fn word(&self, random: &mut SplitMix64, invented: usize) -> String {
        match random.percent(invented) {
            true => invent(random),
            false => self.common(random).to_owned(),
        }
    }
}

/// Returns an invented word of one to four syllables.
pub(super) fn invent(random: &mut SplitMix64) -> String {
    let syllables = 1 + random.below(2) + random.below(3);
    let syllable = |_| [random.pick(&ONSETS), random.pick(&VOWELS), random.pick(&CODAS)].concat();
    (0..syllables).map(syllable).collect()
}

/// Returns a nickname of exactly so many characters.
pub(super) fn nickname(characters: usize, random: &mut SplitMix64) -> String {
    let mut name = String::new();
    while name.len() < characters {
        let word = invent(random);
        name.push_str(&if random.percent(40) { capitalised(&word) } else { word });
    }
    name.truncate(characters);
    name
}

/// Returns an identifier: `prefix`, then characters drawn from `alphabet`, which is ASCII.
pub(super) fn code(prefix: &str, alphabet: &str, characters: usize, random: &mut SplitMix64) -> String {
    let letter = |_| char::from(alphabet.as_bytes()[random.below(alphabet.len())]);
    prefix.chars().chain((0..characters).map(letter)).collect()
}

/// Writes a word with a capital.
pub(super) fn capitalised(word: &str) -> String {
    let mut characters = word.chars();
    characters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + characters.as_str())
}

/// Ends a text after so many characters, never with a space, so that lengths are as measured.
fn cut(text: &mut String, characters: usize) {
    text.truncate(characters.max(1));
    if text.ends_with([' ', ',']) {
        text.pop();
        text.push('s');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_as_long_as_asked_for() {
        let (words, mut random) = (Words::new(), SplitMix64::new(1));
        for characters in [1, 2, 17, 100, 1000] {
            assert_eq!(words.prose(characters, 10, &mut random).len(), characters);
            assert_eq!(words.title(characters, 80, &mut random).len(), characters);
            assert_eq!(nickname(characters, &mut random).len(), characters);
        }
        assert_eq!(words.prose(0, 10, &mut random), "");
        assert_eq!(code("AR", "01", 4, &mut random).len(), 6);
    }

    #[test]
    fn common_words_are_common() {
        let (words, mut random) = (Words::new(), SplitMix64::new(2));
        let the = (0..10_000).filter(|_| words.common(&mut random) == "the").count();
        assert!((80..300).contains(&the), "{the}");
    }
}
