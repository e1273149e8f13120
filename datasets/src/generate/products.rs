//! Reviews of products, stored listing by listing: `products`.
//!
//! A product may be listed twice, with the same reviews under the same id; and a variant of a product (another colour, another length) has
//! an id of its own, a title and a description that begin like those of the first, and the same reviews. Short reviews and titles are often the same words.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::columns::{Columns, of_units};
use super::distribution::{Quantiles, Skew};
use super::text::{Words, code};
use crate::catalogue::Dataset;
use crate::random::SplitMix64;

const ROWS: usize = 9_493;
const LISTINGS: usize = 1_231;
/// Listings of products that are listed already.
const LISTED_AGAIN: usize = 103;
/// Products that share their reviews with another.
const VARIANTS: usize = 147;
/// Variants that share the description too, in a hundred.
const SAME_DESCRIPTION_PERCENT: usize = 30;
/// The longest hundredth is drawn in, so that the mean is as measured.
const TEXT_CHARACTERS: Quantiles = Quantiles([1.0, 17.0, 34.0, 76.0, 163.0, 342.0, 1_100.0, 5_000.0]);
const TEXTS: Skew = Skew(&[(1, 3.3), (4, 6.9), (16, 10.2), (64, 13.0), (256, 17.6), (1_024, 27.8), (6_527, 100.0)]);
const TITLE_CHARACTERS: Quantiles = Quantiles([1.0, 10.0, 15.0, 23.0, 35.0, 52.0, 91.0, 131.0]);
const TITLES: Skew =
    Skew(&[(1, 6.2), (2, 10.0), (4, 13.1), (16, 19.7), (64, 26.7), (256, 36.0), (1_024, 46.0), (5_107, 100.0)]);
const DESCRIPTION_CHARACTERS: Quantiles = Quantiles([16.0, 220.0, 396.0, 629.0, 972.0, 1_311.0, 2_029.0, 2_646.0]);
const PRODUCT_CHARACTERS: Quantiles = Quantiles([16.0, 59.0, 81.0, 126.0, 173.0, 195.0, 220.0, 485.0]);
const RATINGS: Skew = Skew(&[(1, 17.5), (2, 33.4), (4, 62.1), (8, 89.3), (16, 99.1), (25, 100.0)]);
const CATEGORIES: Skew =
    Skew(&[(1, 16.7), (2, 21.8), (4, 30.2), (8, 40.6), (16, 51.9), (32, 65.7), (64, 81.8), (128, 94.3), (199, 100.0)]);
/// Texts and titles that count as frequent.
const FREQUENT: u32 = 1_024;
const CAPITALS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/// What a listing is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    New,
    ListedAgain,
    Variant,
}

/// A product: its number, the list of its reviews, and the description that it has.
#[derive(Clone, Copy)]
struct Product {
    product: u32,
    reviews: u32,
    description: u32,
}

/// Returns the product of each listing; the first is new, and the others are of all kinds in no order.
fn listings(random: &mut SplitMix64) -> Vec<Product> {
    let mut kinds = [vec![Kind::ListedAgain; LISTED_AGAIN], vec![Kind::Variant; VARIANTS]].concat();
    kinds.resize(LISTINGS - 1, Kind::New);
    random.shuffle(&mut kinds);
    let mut listings = vec![Product { product: 0, reviews: 0, description: 0 }];
    let (mut product, mut reviews) = (1, 1);
    for kind in kinds {
        let earlier = listings[random.below(listings.len())];
        listings.push(match kind {
            Kind::New => Product { product, reviews, description: product },
            Kind::ListedAgain => earlier,
            Kind::Variant => {
                let description = if random.percent(SAME_DESCRIPTION_PERCENT) { earlier.description } else { product };
                Product { product, reviews: earlier.reviews, description }
            }
        });
        product += u32::from(kind != Kind::ListedAgain);
        reviews += u32::from(kind == Kind::New);
    }
    listings
}

/// Where the reviews of a list begin among all reviews, and how many it has: eight, or seven.
fn reviews_of(list: u32) -> std::ops::Range<u32> {
    let first = |list: u32| 8 * list - list * 2 / 7;
    first(list)..first(list + 1)
}

pub(super) fn products(dataset: &Dataset, rows: usize, mut random: SplitMix64) -> Result<RecordBatch, ArrowError> {
    let words = Words::new();
    let listings = listings(&mut random);
    let of_row: Vec<(Product, u32)> = listings
        .iter()
        .flat_map(|listing| reviews_of(listing.reviews).map(|review| (*listing, review)))
        .take(ROWS)
        .collect();
    let codes = |code: fn(&(Product, u32)) -> u32| -> Vec<u32> { of_row.iter().map(code).collect() };
    let (product, description) = (codes(|(of, _)| of.product), codes(|(of, _)| of.description));
    let (list, review) = (codes(|(of, _)| of.reviews), codes(|(_, review)| *review));
    let count = |codes: &[u32]| codes.iter().max().map_or(0, |last| *last as usize + 1);
    let texts = TEXTS.assign(count(&review), &mut random);
    let titles = TITLES.assign(count(&review), &mut random);
    let ratings = RATINGS.assign(count(&product), &mut random);
    let categories = CATEGORIES.assign(count(&list), &mut random);
    // The list that a product shares with others: what its title and its description begin with.
    let mut family = vec![0; listings.len()];
    listings.iter().for_each(|listing| family[listing.product as usize] = listing.reviews);
    let begin = |name: &str, product: u32| random.part(name, u64::from(family[product as usize]));

    let mut columns = Columns::new(dataset, random.clone(), rows);
    columns.text(&of_units(&review, &texts), |text, random| words.prose(length(TEXT_CHARACTERS, text, random), 8, random));
    columns.text(&description, |product, own| {
        let mut shared = begin("description", product);
        varied(&words, DESCRIPTION_CHARACTERS.length(&mut shared), 24, &mut shared, own)
    });
    columns.text(&product, |_, random| code("B0", CAPITALS, 8, random));
    columns
        .text(&of_units(&review, &titles), |title, random| words.title(length(TITLE_CHARACTERS, title, random), 0, random));
    columns.number(&of_units(&product, &ratings), |rating, _| rating_of(rating));
    columns.text(&product, |product, own| {
        let mut shared = begin("product_title", product);
        varied(&words, PRODUCT_CHARACTERS.length(&mut shared), 80, &mut shared, own)
    });
    columns.text(&of_units(&list, &categories), |_, random| category(&words, random));
    columns.text(&review, |_, random| code("R", CAPITALS, 12 + random.below(2), random));
    columns.finish()
}

/// Draws the length of a text by its rank: those that many people write are shorter.
fn length(characters: Quantiles, rank: u32, random: &mut SplitMix64) -> usize {
    if rank < FREQUENT { characters.shorter(random) } else { characters.length(random) }
}

/// Returns the rating that is the most frequent but so many: 4.1, then those around it; the last is that there is none.
fn rating_of(rank: u32) -> Option<f64> {
    let tenths = match rank {
        0..18 if rank.is_multiple_of(2) => 41 + rank / 2,
        0..18 => 41 - rank.div_ceil(2),
        18..24 => 49 - rank,
        _ => return None,
    };
    Some(f64::from(tenths) / 10.0)
}

/// Writes a text that begins with three quarters of what its family has, and ends with its own.
fn varied(words: &Words, characters: usize, invented: usize, shared: &mut SplitMix64, own: &mut SplitMix64) -> String {
    let own_characters = characters / 4;
    let beginning = words.prose(characters - own_characters, invented, shared);
    format!("{beginning} {}", words.prose(own_characters, invented, own))
}

/// Writes the path of a category: a department, and two to four levels below it, of which the first are shared by many.
fn category(words: &Words, random: &mut SplitMix64) -> String {
    const DEPARTMENTS: [&str; 4] = ["Computers&Accessories", "Electronics", "Home&Kitchen", "OfficeProducts"];
    let department = random.below(6).min(3);
    let mut path = vec![DEPARTMENTS[department].to_owned()];
    let mut place = department as u64;
    for (level, choices) in [4, 6, 8, 10].into_iter().take(2 + random.below(3)).enumerate() {
        place = place * 16 + random.below(choices) as u64;
        let mut of_place = SplitMix64::new(place).part("category", level as u64);
        let characters = 9 + of_place.below(12);
        path.push(words.title(characters, 0, &mut of_place).replace(' ', ""));
    }
    path.join(" > ")
}
