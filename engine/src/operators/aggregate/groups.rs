//! The inputs of groups: lists of values become texts, in an order that does not depend on how rows were spread.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::{HashSet, Result, exec_err};
use refrain_udf::JsonRenderer;

/// One input of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// The JSON text of each of its fields.
    pub fields: Arc<[Arc<str>]>,
    /// Where its value stands in [`Groups::values`].
    pub position: usize,
}

/// The inputs of some groups.
#[derive(Debug)]
pub(super) struct Groups {
    /// The items of each group, in order.
    pub items: Vec<Vec<Item>>,
    /// The values that items stand for.
    pub values: ArrayRef,
}

/// Reads one list of items for each group.
///
/// Items are ordered by their keys as `order` says, if they have any, and then by their text. With `distinct` only the first of
/// equal texts is kept.
pub(super) fn groups(lists: &ArrayRef, order: &[SortOptions], distinct: bool) -> Result<Groups> {
    let Some(lists) = lists.as_list_opt::<i32>() else {
        return exec_err!("the inputs of an aggregate are no lists but {}", lists.data_type());
    };
    // The lists may be a few of many.
    let offsets = lists.value_offsets();
    let start = offsets[0] as usize;
    let values = lists.values().slice(start, offsets[lists.len()] as usize - start);
    let (values, keys) = match order {
        [] => (values, None),
        order => {
            let item = values.as_struct();
            (Arc::clone(item.column(0)), Some(sortable(&item.columns()[1..], order)?))
        }
    };
    let columns = match values.as_struct_opt() {
        Some(fields) => fields.columns().to_vec(),
        None => vec![Arc::clone(&values)],
    };
    let renderers = columns.iter().map(|column| JsonRenderer::new(column.as_ref())).collect::<Result<Vec<_>>>()?;
    let item = |position: usize| {
        let text = |renderer: &JsonRenderer| {
            let mut text = String::new();
            renderer.write(position, &mut text);
            Arc::from(text)
        };
        Item { fields: renderers.iter().map(text).collect(), position }
    };
    let mut groups = Vec::with_capacity(lists.len());
    for group in 0..lists.len() {
        let range = match lists.is_null(group) {
            true => 0..0,
            false => offsets[group] as usize - start..offsets[group + 1] as usize - start,
        };
        let mut items: Vec<Item> = range.map(item).collect();
        items.sort_by(|a, b| {
            let by_key = keys.as_ref().map(|keys| keys.row(a.position).cmp(&keys.row(b.position)));
            by_key.unwrap_or(std::cmp::Ordering::Equal).then_with(|| a.fields.cmp(&b.fields))
        });
        if distinct {
            let mut seen = HashSet::new();
            items.retain(|item| seen.insert(Arc::clone(&item.fields)));
        }
        groups.push(items);
    }
    Ok(Groups { items: groups, values })
}

/// Returns keys in a form that compares as they do.
fn sortable(keys: &[ArrayRef], order: &[SortOptions]) -> Result<Rows> {
    let fields = keys.iter().zip(order);
    let fields = fields.map(|(key, options)| SortField::new_with_options(key.data_type().clone(), *options)).collect();
    Ok(RowConverter::new(fields)?.convert_columns(keys)?)
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Int32Array, ListArray, StringArray, StructArray};
    use datafusion::arrow::buffer::OffsetBuffer;
    use datafusion::arrow::datatypes::{DataType, Field};

    use super::*;

    fn texts(groups: &Groups) -> Vec<Vec<String>> {
        let text = |item: &Item| item.fields.join(" ");
        groups.items.iter().map(|items| items.iter().map(text).collect()).collect()
    }

    fn list(values: ArrayRef, lengths: &[usize]) -> ArrayRef {
        let field = Arc::new(Field::new_list_field(values.data_type().clone(), true));
        Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths.iter().copied()), values, None))
    }

    #[test]
    fn without_keys_items_are_ordered_by_their_text() {
        let values: ArrayRef = Arc::new(StringArray::from(vec!["b", "a", "b", "c"]));
        let lists = list(Arc::clone(&values), &[3, 0, 1]);
        let read = groups(&lists, &[], false).unwrap();
        assert_eq!(texts(&read), [vec!["\"a\"", "\"b\"", "\"b\""], vec![], vec!["\"c\""]]);
        assert_eq!(read.items[0][0].position, 1);
        assert_eq!(texts(&groups(&lists, &[], true).unwrap())[0], ["\"a\"", "\"b\""]);
    }

    #[test]
    fn some_of_many_lists_are_read_alone() {
        let values: ArrayRef = Arc::new(StringArray::from(vec!["b", "a", "d", "c"]));
        let read = groups(&list(values, &[2, 1, 1]).slice(1, 2), &[], false).unwrap();
        assert_eq!(texts(&read), [["\"d\""], ["\"c\""]]);
        assert_eq!((read.values.len(), read.items[1][0].position), (2, 1));
    }

    #[test]
    fn keys_come_before_text() {
        let values: ArrayRef = Arc::new(StringArray::from(vec!["b", "a", "x", "n"]));
        let keys: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), Some(1), Some(2), None]));
        let fields = vec![Field::new("value", DataType::Utf8, true), Field::new("key1", DataType::Int32, true)];
        let items: ArrayRef = Arc::new(StructArray::new(fields.into(), vec![values, keys], None));
        let order = |descending, nulls_first| [SortOptions { descending, nulls_first }];
        let lists = list(items, &[4]);
        let read = |order: &[SortOptions]| texts(&groups(&lists, order, false).unwrap()).remove(0);
        assert_eq!(read(&order(false, false)), ["\"a\"", "\"b\"", "\"x\"", "\"n\""]);
        assert_eq!(read(&order(true, true)), ["\"n\"", "\"x\"", "\"a\"", "\"b\""]);
    }
}
