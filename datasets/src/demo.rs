//! The demonstration table: reviews of products, generated from a seed.
//!
//! The table has what makes a table dear to a language model that reads it row by row: a long description that repeats in every
//! review of a product, reviews that were posted twice, and an order that keeps equal things apart. Opinions are plain, so that
//! a small model can tell them. All text is made up here.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};

use crate::products::{PRODUCTS, Product};
use crate::random::SplitMix64;

/// Reviews of each product.
const REVIEWS_PER_PRODUCT: usize = 10;

/// Chance in a hundred that a review is posted a second time by mistake.
const POSTED_TWICE_PERCENT: usize = 15;

/// One row of the table.
struct Review {
    product: &'static Product,
    stars: i64,
    text: String,
}

/// Returns the columns of the table: `review_id`, `product`, `category`, `description`, `stars` (1 to 5) and `review`.
pub fn schema() -> SchemaRef {
    let text = |name| Field::new(name, DataType::Utf8, false);
    let number = |name| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![
        number("review_id"),
        text("product"),
        text("category"),
        text("description"),
        number("stars"),
        text("review"),
    ]))
}

/// Generates 240 reviews of 24 products, in an order in which products alternate. The same seed gives the same table.
///
/// # Errors
/// None that a caller could cause; Arrow checks that columns agree with the schema.
pub fn reviews(seed: u64) -> Result<RecordBatch, ArrowError> {
    let mut random = SplitMix64::new(seed);
    let mut rows: Vec<Review> = PRODUCTS.iter().flat_map(|product| product_reviews(product, &mut random)).collect();
    random.shuffle(&mut rows);

    let texts = |text: fn(&Review) -> String| Arc::new(StringArray::from_iter_values(rows.iter().map(text))) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(1..=rows.len() as i64)),
        texts(|row| row.product.name.to_owned()),
        texts(|row| row.product.category.to_owned()),
        texts(|row| row.product.description()),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.stars))),
        texts(|row| row.text.clone()),
    ];
    RecordBatch::try_new(schema(), columns)
}

fn product_reviews(product: &'static Product, random: &mut SplitMix64) -> Vec<Review> {
    let mut reviews: Vec<Review> = Vec::with_capacity(REVIEWS_PER_PRODUCT);
    while reviews.len() < REVIEWS_PER_PRODUCT {
        let review = match reviews.last() {
            Some(Review { stars, text, .. }) if random.percent(POSTED_TWICE_PERCENT) => {
                Review { product, stars: *stars, text: text.clone() }
            }
            _ => review(product, random),
        };
        reviews.push(review);
    }
    reviews
}

/// Writes one review: an opinion, a reason, and often a conclusion.
fn review(product: &'static Product, random: &mut SplitMix64) -> Review {
    let is_happy = random.percent(55);
    let (opinions, reasons, conclusions) = if is_happy {
        (HAPPY_OPINIONS, HAPPY_REASONS, HAPPY_CONCLUSIONS)
    } else {
        (UNHAPPY_OPINIONS, UNHAPPY_REASONS, UNHAPPY_CONCLUSIONS)
    };
    let mut sentences = vec![random.pick(opinions), random.pick(reasons)];
    if random.percent(70) {
        sentences.push(random.pick(conclusions));
    }
    let stars = match (is_happy, random.percent(60)) {
        (true, true) => 5,
        (true, false) => 4,
        (false, true) => 1,
        (false, false) => 2,
    };
    Review { product, stars, text: sentences.join(" ").replace("{noun}", product.noun) }
}

// Sentences fit any product: `{noun}` is used only where singular and plural both read well.

const HAPPY_OPINIONS: &[&str] = &[
    "I love this product.",
    "This is the best purchase I have made all year.",
    "Excellent quality and a fair price.",
    "I am very happy with it.",
    "Wonderful, exactly what I was hoping for.",
    "A great product that does its job perfectly.",
    "I was impressed from the first day.",
    "My family enjoys it every single day.",
    "Beautifully made and a pleasure to use.",
    "Far better than the one I had before.",
];

const HAPPY_REASONS: &[&str] = &[
    "It feels solid and works without any fuss.",
    "Everything fits well and nothing rattles.",
    "It arrived early and was carefully packed.",
    "After six months of daily use it still looks like new.",
    "Setting it up took two minutes and was very easy.",
    "The finish is lovely and the details are well thought out.",
    "Customer service answered my question within an hour and was very kind.",
    "It does more than the advertisement promised.",
    "Even my father, who complains about everything, likes it.",
    "It is easy to clean and easy to store.",
];

const HAPPY_CONCLUSIONS: &[&str] = &[
    "I highly recommend it.",
    "I would buy the {noun} again without hesitation.",
    "Worth every penny.",
    "I have already ordered another as a gift.",
    "Five stars from me, well done!",
    "I could not be more satisfied.",
];

const UNHAPPY_OPINIONS: &[&str] = &[
    "I am very disappointed.",
    "This is a waste of money.",
    "Terrible quality for the price.",
    "I regret buying this.",
    "Bad from the first day.",
    "The worst product I have bought in years.",
    "It does not work as advertised.",
    "Cheaply made and annoying to use.",
    "I expected much better than this.",
    "Frustrating and badly designed.",
];

const UNHAPPY_REASONS: &[&str] = &[
    "It broke after two weeks of light use.",
    "One part was missing and another was scratched.",
    "It arrived late and in a torn box.",
    "It smells awful and the smell does not go away.",
    "The instructions make no sense and nothing fits together.",
    "It feels flimsy and the edges are rough.",
    "Customer service was rude and refused to help me.",
    "It failed completely when I needed it most.",
    "It makes an ugly noise that gives me a headache.",
    "Cleaning it is a nightmare.",
];

const UNHAPPY_CONCLUSIONS: &[&str] = &[
    "I do not recommend it.",
    "I sent the {noun} back and want my money returned.",
    "Avoid it.",
    "Never again.",
    "Save your money and buy something else.",
    "One star is still too much.",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use arrow_array::cast::AsArray;
    use arrow_array::types::Int64Type;

    #[test]
    fn a_seed_gives_one_table() {
        assert_eq!(reviews(1).unwrap(), reviews(1).unwrap());
        assert_ne!(reviews(1).unwrap(), reviews(2).unwrap());
    }

    #[test]
    fn the_table_of_seed_1_stays_what_it_is() {
        let table = reviews(1).unwrap();
        let checksum: u64 = (0..table.num_columns())
            .filter_map(|column| table.column(column).as_string_opt::<i32>())
            .flat_map(|column| column.iter().flatten().flat_map(str::bytes))
            .fold(0, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        assert_eq!(checksum, SEED_1_CHECKSUM);
    }

    /// Changes only where the text of the generator is meant to change.
    const SEED_1_CHECKSUM: u64 = 14_747_584_259_934_050_420;

    #[test]
    fn descriptions_are_long_and_repeat() {
        let table = reviews(1).unwrap();
        let descriptions: Vec<&str> = table.column(3).as_string::<i32>().iter().flatten().collect();
        let distinct: HashSet<&str> = descriptions.iter().copied().collect();
        assert_eq!((table.num_rows(), distinct.len()), (240, PRODUCTS.len()));
        assert!(distinct.iter().all(|text| (65..105).contains(&text.split_whitespace().count())));
        let repeats = descriptions.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(repeats < 40, "equal descriptions lie apart, so that reordering has something to do: {repeats}");
    }

    #[test]
    fn some_reviews_are_posted_twice_and_stars_agree_with_words() {
        let table = reviews(1).unwrap();
        let products = table.column(1).as_string::<i32>().iter().flatten();
        let texts: Vec<&str> = table.column(5).as_string::<i32>().iter().flatten().collect();
        let distinct: HashSet<_> = products.zip(&texts).collect();
        assert!((20..70).contains(&(table.num_rows() - distinct.len())), "{}", table.num_rows() - distinct.len());
        assert!(texts.iter().all(|text| !text.contains('{')));
        for (text, stars) in texts.iter().zip(table.column(4).as_primitive::<Int64Type>().values()) {
            assert_eq!(HAPPY_OPINIONS.iter().any(|opinion| text.starts_with(opinion)), *stars >= 4, "{text}");
        }
    }
}
