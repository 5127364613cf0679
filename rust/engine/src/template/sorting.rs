//! A stable sort that asks only "is a less than b", as list.sort does, and may fail.

use super::value::Res;

/// Sorts by `less`. An order that contradicts itself gives some order, never a panic.
pub fn sorted<T>(items: Vec<T>, less: &mut impl FnMut(&T, &T) -> Res<bool>) -> Res<Vec<T>> {
    if items.len() < 2 {
        return Ok(items);
    }
    let mut left = items;
    let right = left.split_off(left.len() / 2);
    let mut left = sorted(left, less)?.into_iter().peekable();
    let mut right = sorted(right, less)?.into_iter().peekable();
    let mut merged = Vec::with_capacity(left.len() + right.len());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let next = if less(b, a)? { right.next() } else { left.next() };
        merged.extend(next);
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}
