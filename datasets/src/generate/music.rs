//! Records of pieces of music in no order, in 35 columns: `pdmx`.
//!
//! Twelve columns are those of the artist, two those of the release, which is by one artist; the rest are measured of the piece, most of
//! them numbers that hardly repeat.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::columns::{Columns, numbered, of_units};
use super::distribution::{Quantiles, Skew};
use super::text::{Words, code};
use crate::catalogue::Dataset;
use crate::random::SplitMix64;

const ROWS: usize = 10_000;
const ARTISTS: Skew = Skew(&[
    (1, 0.1),
    (4, 0.5),
    (8, 1.0),
    (16, 1.8),
    (32, 3.4),
    (64, 6.2),
    (128, 11.0),
    (256, 19.3),
    (512, 33.0),
    (1_024, 53.8),
    (2_048, 78.8),
    (3_888, 100.0),
]);
/// Pieces in a thousand that are on a release of an earlier piece of the artist, of those that have one.
const SAME_RELEASE: usize = 308;
/// Artists in a hundred whose name is written in more than one way.
const GUESTS_PERCENT: usize = 11;
/// The first value is that there is none.
const TAGS: Skew =
    Skew(&[(1, 62.9), (2, 65.4), (4, 69.1), (8, 75.1), (16, 81.2), (32, 87.1), (64, 92.2), (128, 96.6), (277, 100.0)]);
const SIMILAR: Skew =
    Skew(&[(1, 0.6), (4, 2.1), (16, 5.6), (64, 14.7), (128, 22.8), (256, 34.5), (512, 51.0), (1_024, 72.0), (2_839, 100.0)]);
const TERMS: Skew =
    Skew(&[(1, 3.5), (2, 6.9), (4, 11.6), (8, 17.5), (16, 26.4), (32, 38.0), (64, 54.2), (128, 74.3), (459, 100.0)]);
/// Places of artists of whom the coordinates are known, and their names.
const PLACES: Skew =
    Skew(&[(1, 5.3), (2, 8.5), (4, 13.1), (8, 19.2), (16, 27.0), (32, 37.4), (64, 49.7), (128, 64.2), (622, 100.0)]);
const YEARS: Skew = Skew(&[(1, 53.2), (2, 56.4), (4, 62.3), (8, 72.6), (16, 85.8), (32, 95.8), (69, 100.0)]);
const KEYS: Skew = Skew(&[(1, 13.4), (2, 25.5), (4, 47.2), (8, 78.8), (12, 100.0)]);
const TIME_SIGNATURES: Skew = Skew(&[(1, 63.5), (2, 78.5), (3, 91.3), (6, 100.0)]);
const NAME_CHARACTERS: Quantiles = Quantiles([1.0, 6.0, 9.0, 12.0, 16.0, 25.0, 53.0, 120.0]);
const RELEASE_CHARACTERS: Quantiles = Quantiles([1.0, 8.0, 12.0, 17.0, 25.0, 37.0, 65.0, 128.0]);
const TITLE_CHARACTERS: Quantiles = Quantiles([1.0, 8.0, 11.0, 16.0, 25.0, 36.0, 69.0, 174.0]);
const PLACE_CHARACTERS: Quantiles = Quantiles([3.0, 7.0, 10.0, 14.0, 18.0, 24.0, 33.0, 68.0]);
const TERM_CHARACTERS: Quantiles = Quantiles([2.0, 5.0, 7.0, 10.0, 12.0, 16.0, 21.0, 40.0]);
const RELEASE_IDS: Quantiles = Quantiles([0.0, 47_592.0, 170_819.0, 335_912.0, 577_023.0, 714_489.0, 813_587.0, 823_599.0]);
const HEX: &str = "0123456789ABCDEF";
const CAPITALS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// A number: two values that are frequent, each with its share in a thousand, the quantiles of the others, and digits after the point.
struct Number {
    usual: [(f64, usize); 2],
    others: Quantiles,
    digits: i32,
}

impl Number {
    const fn new(usual: [(f64, usize); 2], others: [f64; 8], digits: i32) -> Self {
        Self { usual, others: Quantiles(others), digits }
    }

    fn draw(&self, random: &mut SplitMix64) -> Option<f64> {
        let at = random.below(1_000);
        let [(first, share), (second, more)] = self.usual;
        if at < share {
            return Some(first);
        }
        if at < share + more {
            return Some(second);
        }
        let scale = 10_f64.powi(self.digits);
        Some((self.others.draw(random) * scale).round() / scale)
    }
}

const NONE: [(f64, usize); 2] = [(0.0, 0), (0.0, 0)];
const HOTTNESSS: Number =
    Number::new([(0.0, 50), (0.0, 0)], [0.0116, 0.2904, 0.3357, 0.3862, 0.459, 0.5508, 0.7942, 1.0825], 9);
const BARS_CONFIDENCE: Number = Number::new([(0.0, 28), (1.0, 20)], [0.001, 0.013, 0.039, 0.121, 0.341, 0.68, 0.97, 1.0], 3);
const BARS_START: Number =
    Number::new([(0.0, 3), (0.0, 0)], [0.0204, 0.207, 0.4448, 0.787, 1.2257, 1.8519, 5.9648, 59.7435], 5);
const BEATS_CONFIDENCE: Number =
    Number::new([(1.0, 126), (0.0, 113)], [0.001, 0.23, 0.47, 0.68, 0.83, 0.92, 0.99, 0.999], 3);
const BEATS_START: Number =
    Number::new([(0.0, 2), (0.0, 0)], [0.01, 0.096, 0.1956, 0.333, 0.5012, 0.7397, 2.5369, 12.2458], 5);
const DURATION: Number = Number::new(NONE, [1.0444, 135.2355, 175.9865, 223.1375, 276.3751, 350.4322, 617.8216, 1_819.7], 5);
const FADE_IN: Number = Number::new([(0.0, 308), (0.0, 0)], [0.06, 0.125, 0.189, 0.328, 0.742, 3.152, 9.009, 43.119], 3);
const FAMILIARITY: Number =
    Number::new([(0.0, 2), (0.0, 0)], [0.0156, 0.3803, 0.469, 0.564, 0.6681, 0.7852, 0.9092, 1.0], 9);
const KEY_CONFIDENCE: Number = Number::new([(0.0, 52), (1.0, 19)], [0.001, 0.082, 0.27, 0.485, 0.66, 0.8, 0.98, 0.999], 3);
const LATITUDE: Number = Number::new(NONE, [-41.2805, 27.9758, 33.7483, 38.9979, 43.6486, 52.4786, 62.1985, 69.651], 5);
const LONGITUDE: Number =
    Number::new(NONE, [-162.4365, -118.2453, -93.2916, -80.2374, -9.401, 4.3797, 133.3931, 174.7671], 5);
const LOUDNESS: Number = Number::new(NONE, [-51.643, -17.424, -13.164, -9.383, -6.53, -4.884, -2.846, 0.566], 3);
const MODE_CONFIDENCE: Number = Number::new([(0.0, 28), (0.0, 0)], [0.002, 0.261, 0.372, 0.494, 0.61, 0.715, 0.902, 1.0], 3);
const SONG_HOTTNESSS: Number = Number::new([(0.0, 253), (0.2659, 25)], [0.19, 0.27, 0.36, 0.48, 0.59, 0.68, 0.85, 1.0], 9);
const FADE_OUT: Number = Number::new(NONE, [4.2, 129.277, 168.855, 213.896, 266.292, 339.946, 596.77, 1_813.426], 3);
const TATUMS_CONFIDENCE: Number =
    Number::new([(1.0, 115), (0.0, 69)], [0.001, 0.12, 0.28, 0.49, 0.69, 0.85, 0.98, 0.999], 3);
const TATUMS_START: Number =
    Number::new([(0.0, 2), (0.0, 0)], [0.0157, 0.0597, 0.1112, 0.1918, 0.295, 0.5301, 2.3814, 12.2458], 5);
const TEMPO: Number =
    Number::new([(0.0, 2), (0.0, 0)], [40.0, 84.971, 97.035, 120.206, 144.03, 169.951, 216.023, 262.828], 3);
const TERMS_FREQ: Number =
    Number::new([(1.0, 493), (0.0, 0)], [0.0, 0.8654, 0.9106, 0.9479, 0.9827, 0.999, 0.99998, 1.0], 9);
const SIGNATURE_CONFIDENCE: Number =
    Number::new([(0.0, 217), (1.0, 156)], [0.001, 0.13, 0.31, 0.54, 0.77, 0.91, 0.99, 0.999], 3);
/// Where artists are said to be whose place is not known.
const NOWHERE: (f64, f64) = (37.157_356_750_133_62, -63.933_357_868_519_515);

/// The place of an artist: 0 for none, 1 to 622 with coordinates, above that a name alone.
fn places(sizes: &[usize], random: &mut SplitMix64) -> Vec<u32> {
    let known: Vec<bool> = sizes.iter().map(|_| random.below(1_000) < 374).collect();
    let of = |wanted: bool| -> Vec<usize> {
        sizes.iter().zip(&known).filter(|(_, known)| **known == wanted).map(|(size, _)| *size).collect()
    };
    let mut places = PLACES.assign_weighted(&of(true)).into_iter();
    let place = |is_known: &bool| match is_known {
        true => places.next().map_or(1, |place| place + 1),
        false if random.percent(69) => 0,
        false => 623 + random.below(700) as u32,
    };
    known.iter().map(place).collect()
}

/// Gives each piece a release of its artist.
fn releases(artists: &[u32], random: &mut SplitMix64) -> Vec<u32> {
    let mut of_artist: Vec<Vec<u32>> = vec![vec![]; ARTISTS.n_values()];
    let mut next = 0;
    let mut release = |artist: &u32| {
        let own = &mut of_artist[*artist as usize];
        if !own.is_empty() && random.below(1_000) < SAME_RELEASE {
            return own[random.below(own.len())];
        }
        own.push(next);
        next += 1;
        next - 1
    };
    artists.iter().map(&mut release).collect()
}

pub(super) fn pdmx(dataset: &Dataset, rows: usize, mut random: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let words = Words::new();
    let sizes = ARTISTS.counts(ROWS);
    let artists = ARTISTS.assign(ROWS, &mut random);
    let of_artist = |values: &[u32]| of_units(&artists, values);
    let tags = of_artist(&TAGS.assign_weighted(&sizes));
    let similar = of_artist(&SIMILAR.assign_weighted(&sizes));
    let terms = of_artist(&TERMS.assign_weighted(&sizes));
    let places = of_artist(&places(&sizes, &mut random));
    let releases = releases(&artists, &mut random);
    // Three of four pieces of an artist with guests name the artist alone.
    let names: Vec<u32> = artists
        .iter()
        .map(|artist| match (*artist as usize * 7 % 100 < GUESTS_PERCENT, random.percent(30)) {
            (true, true) => ROWS as u32 + random.below(ROWS) as u32 * ARTISTS.n_values() as u32 + artist,
            _ => *artist,
        })
        .collect();
    let pieces = numbered(ROWS);
    let draws = |skew: Skew, random: &mut SplitMix64| -> Vec<u32> { pieces.iter().map(|_| skew.draw(random)).collect() };
    let (keys, signatures, years) =
        (draws(KEYS, &mut random), draws(TIME_SIGNATURES, &mut random), draws(YEARS, &mut random));
    let modes: Vec<u32> = pieces.iter().map(|_| u32::from(random.below(1_000) < 691)).collect();

    let mut columns = Columns::new(dataset, random, rows);
    let of_piece = |columns: &mut Columns<'_>, number: &Number| columns.number(&pieces, |_, random| number.draw(random));
    columns.number(&artists, |_, random| HOTTNESSS.draw(random));
    columns.text(&artists, |_, random| identifier("AR", random));
    columns.text(&names, |_, random| words.title(NAME_CHARACTERS.length(random), 40, random));
    columns.nullable_text(&tags, |tag, random| {
        (tag > 0).then(|| words.title(TERM_CHARACTERS.length(random), 15, random).to_lowercase())
    });
    columns.number(&tags, |tag, random| Some(if tag == 0 { 0.0 } else { f64::from(1 + random.below(4) as u32 / 3) }));
    of_piece(&mut columns, &BARS_CONFIDENCE);
    of_piece(&mut columns, &BARS_START);
    of_piece(&mut columns, &BEATS_CONFIDENCE);
    of_piece(&mut columns, &BEATS_START);
    of_piece(&mut columns, &DURATION);
    of_piece(&mut columns, &FADE_IN);
    columns.number(&artists, |_, random| FAMILIARITY.draw(random));
    columns.number(&keys, |key, _| Some(f64::from(key)));
    of_piece(&mut columns, &KEY_CONFIDENCE);
    let coordinate = |columns: &mut Columns<'_>, nowhere: f64, number: &Number| {
        let is_known: Vec<u32> = places.iter().map(|place| if *place < 623 { *place } else { 0 }).collect();
        columns.number(&is_known, |place, random| if place == 0 { Some(nowhere) } else { number.draw(random) });
    };
    coordinate(&mut columns, NOWHERE.0, &LATITUDE);
    columns.text(&places, |place, random| match place {
        0 => "Not available".to_owned(),
        _ => words.title(PLACE_CHARACTERS.length(random), 50, random),
    });
    coordinate(&mut columns, NOWHERE.1, &LONGITUDE);
    of_piece(&mut columns, &LOUDNESS);
    columns.integer(&modes, |mode, _| i64::from(mode));
    of_piece(&mut columns, &MODE_CONFIDENCE);
    columns.integer(&releases, |_, random| RELEASE_IDS.draw(random) as i64);
    columns.text(&releases, |_, random| words.title(RELEASE_CHARACTERS.length(random), 30, random));
    columns.text(&similar, |_, random| identifier("AR", random));
    let heat: Vec<u32> = pieces.clone();
    columns.number(&heat, |_, random| if random.below(1_000) < 435 { None } else { SONG_HOTTNESSS.draw(random) });
    columns.text(&pieces, |_, random| identifier("SO", random));
    of_piece(&mut columns, &FADE_OUT);
    of_piece(&mut columns, &TATUMS_CONFIDENCE);
    of_piece(&mut columns, &TATUMS_START);
    of_piece(&mut columns, &TEMPO);
    columns.text(&terms, |_, random| words.title(TERM_CHARACTERS.length(random), 15, random).to_lowercase());
    columns.number(&artists, |_, random| TERMS_FREQ.draw(random));
    columns.number(&signatures, |rank, _| Some([4.0, 1.0, 3.0, 5.0, 7.0, 0.0][rank as usize]));
    of_piece(&mut columns, &SIGNATURE_CONFIDENCE);
    columns.text(&pieces, |_, random| words.title(TITLE_CHARACTERS.length(random), 33, random));
    columns.integer(&years, |rank, _| if rank == 0 { 0 } else { 2_011 - i64::from(rank) });
    columns.finish()
}

/// Writes an identifier as the collection has them: two letters that say of what, five of its own, and a hexadecimal number.
fn identifier(of: &str, random: &mut SplitMix64) -> String {
    let letters = code(of, CAPITALS, 5, random);
    let series = random.pick(&["1187B9", "1187FB", "11C8A4", "12A6D4", "12A8C1"]);
    code(&(letters + series), HEX, 5, random)
}
