//! A tree over positions that answers in O(log n) what a walk of the list finds in O(n).

/// What a stretch of positions comes to.
pub(crate) trait Summary: Copy + Eq {
    /// That of no destination at all.
    const EMPTY: Self;

    /// That of two stretches side by side. Associative and commutative.
    fn merge(self, other: Self) -> Self;
}

/// The greatest value; 0 for none.
impl Summary for u32 {
    const EMPTY: Self = 0;

    #[inline]
    fn merge(self, other: Self) -> Self {
        self.max(other)
    }
}

/// How many children a node has. Two levels out of three are spared compared with a binary tree, and the children of a node
/// lie in one or two cache lines.
const CHILDREN: usize = 8;

/// Levels enough for any number of positions.
const LEVELS: usize = 12;

/// A tree whose leaves are positions and whose inner nodes merge their children. Level 0 holds the leaves, each level above one
/// node for eight of those below; the last one is the root. Nodes above all positions in use are empty.
#[derive(Clone, Debug)]
pub(crate) struct Tree<T> {
    /// Level by level; of each but the root's a multiple of eight.
    nodes: Vec<T>,
    /// Where each level begins.
    starts: [usize; LEVELS],
    /// The level of the root.
    top: usize,
}

impl<T: Summary> Default for Tree<T> {
    fn default() -> Self {
        Tree::new([].into_iter())
    }
}

impl<T: Summary> Tree<T> {
    /// From the value of each position.
    pub(crate) fn new(values: impl ExactSizeIterator<Item = T>) -> Self {
        let mut tree = Tree { nodes: Vec::new(), starts: [0; LEVELS], top: 0 };
        let mut width = values.len().next_multiple_of(CHILDREN).max(CHILDREN);
        tree.nodes.extend(values);
        tree.nodes.resize(width, T::EMPTY);
        while width > 1 {
            let below = tree.starts[tree.top];
            let parents = width / CHILDREN;
            tree.top += 1;
            tree.starts[tree.top] = tree.nodes.len();
            for parent in 0..parents {
                let merged = tree.merged(below + parent * CHILDREN);
                tree.nodes.push(merged);
            }
            width = if parents == 1 { 1 } else { parents.next_multiple_of(CHILDREN) };
            tree.nodes.resize(tree.starts[tree.top] + width, T::EMPTY);
        }
        tree
    }

    /// What eight nodes come to.
    #[inline]
    fn merged(&self, first: usize) -> T {
        self.nodes[first..first + CHILDREN].iter().fold(T::EMPTY, |merged, node| merged.merge(*node))
    }

    /// What all positions come to.
    #[inline]
    pub(crate) fn all(&self) -> T {
        self.nodes[self.starts[self.top]]
    }

    #[inline]
    fn leaves(&self) -> usize {
        self.starts[1]
    }

    /// Sets a position's value. A position beyond the last makes the tree grow, by doubling.
    #[inline]
    pub(crate) fn set(&mut self, position: usize, value: T) {
        if position >= self.leaves() {
            self.grow(position + 1);
        }
        let (mut level, mut place, mut merged) = (0, position, value);
        loop {
            let node = &mut self.nodes[self.starts[level] + place];
            if *node == merged {
                return;
            }
            *node = merged;
            if level == self.top {
                return;
            }
            merged = self.merged(self.starts[level] + place / CHILDREN * CHILDREN);
            place /= CHILDREN;
            level += 1;
        }
    }

    #[cold]
    fn grow(&mut self, positions: usize) {
        let mut values = self.nodes[..self.leaves()].to_vec();
        values.resize(positions.max(2 * self.leaves()), T::EMPTY);
        *self = Tree::new(values.into_iter());
    }

    /// The greatest position below `end` whose value is `wanted`, which must hold for a stretch exactly when it holds
    /// for one of its positions. In list terms: the first one after the destination at `end`.
    #[inline]
    pub(crate) fn last_below(&self, end: usize, wanted: impl Fn(T) -> bool) -> Option<usize> {
        if end >= self.leaves() {
            return self.last_after(wanted);
        }
        let mut place = end;
        for level in 0..self.top {
            let siblings = place / CHILDREN * CHILDREN..place;
            if let Some(sibling) = siblings.rev().find(|it| wanted(self.nodes[self.starts[level] + it])) {
                return Some(self.descend(level, sibling, wanted));
            }
            place /= CHILDREN;
        }
        None
    }

    /// The position that a walk from the last one on stops at, which asks of one stretch after the other whether to stop within.
    #[inline]
    pub(crate) fn last_after(&self, mut within: impl FnMut(T) -> bool) -> Option<usize> {
        within(self.all()).then(|| self.descend(self.top, 0, within))
    }

    /// The last position below a node that the walk stops at, given that it stops within the node.
    #[inline]
    fn descend(&self, mut level: usize, mut place: usize, mut within: impl FnMut(T) -> bool) -> usize {
        while level > 0 {
            level -= 1;
            let children = place * CHILDREN..(place + 1) * CHILDREN;
            let stop = children.clone().rev().find(|child| within(self.nodes[self.starts[level] + child]));
            place = stop.unwrap_or(children.start);
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn stops_where_a_walk_stops(values in prop::collection::vec(0_u32..4, 0..700), mut left in 1_u32..900) {
            let tree = Tree::new(values.iter().map(|value| Total(*value)));
            let mut walked = None;
            let mut passed = 0;
            for (position, value) in values.iter().enumerate().rev() {
                passed += value;
                walked = walked.or((passed >= left).then_some(position));
            }
            let stopped = tree.last_after(|Total(stretch)| {
                let here = left <= stretch;
                left -= if here { 0 } else { stretch };
                here
            });
            prop_assert_eq!(stopped, walked);
        }

        #[test]
        fn finds_what_a_walk_finds(
            start in prop::collection::vec(0_u32..9, 0..90),
            changes in prop::collection::vec((0_usize..200, 0_u32..9), 0..60),
            end in 0_usize..600,
            least in 1_u32..9,
        ) {
            let mut tree = Tree::new(start.iter().copied());
            let mut plain = start.clone();
            for &(position, value) in &changes {
                tree.set(position, value);
                plain.resize(plain.len().max(position + 1), 0);
                plain[position] = value;
            }
            prop_assert_eq!(tree.all(), plain.iter().copied().max().unwrap_or(0));
            let walked = plain.iter().take(end).rposition_at_least(least);
            prop_assert_eq!(tree.last_below(end, |greatest| greatest >= least), walked);
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Total(u32);

    impl Summary for Total {
        const EMPTY: Self = Total(0);

        fn merge(self, other: Self) -> Self {
            Total(self.0 + other.0)
        }
    }

    trait Walk {
        fn rposition_at_least(self, least: u32) -> Option<usize>;
    }

    impl<'a, I: Iterator<Item = &'a u32>> Walk for I {
        fn rposition_at_least(self, least: u32) -> Option<usize> {
            self.enumerate().filter(|&(_, &value)| value >= least).map(|(position, _)| position).last()
        }
    }
}
