//! A queue with fair turns: clients take turns, one item each, in the order in which they came.
//!
//! A client that queues a hundred items delays another's first one by a single item.

use std::collections::VecDeque;

/// Items that wait, by client. At most one entry a client, none of them empty.
#[derive(Debug)]
pub struct Turns<T> {
    clients: VecDeque<(String, VecDeque<T>)>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { clients: VecDeque::new() }
    }
}

impl<T: PartialEq> Turns<T> {
    /// Items that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.iter().map(|(_, items)| items.len()).sum()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Appends an item to those of a client.
    pub fn push(&mut self, client: &str, item: T) {
        match self.clients.iter_mut().find(|(name, _)| name == client) {
            Some((_, items)) => items.push_back(item),
            None => self.clients.push_back((client.to_owned(), VecDeque::from([item]))),
        }
    }

    /// Puts an item that was taken back in front of everything.
    pub fn put_back(&mut self, client: &str, item: T) {
        let mut items = match self.clients.iter().position(|(name, _)| name == client) {
            Some(i) => self.clients.remove(i).map(|(_, items)| items).unwrap_or_default(),
            None => VecDeque::new(),
        };
        items.push_front(item);
        self.clients.push_front((client.to_owned(), items));
    }

    /// Takes the first item of the client whose turn it is; that client's next turn comes after all others'.
    pub fn pop(&mut self) -> Option<T> {
        let (client, mut items) = self.clients.pop_front()?;
        let item = items.pop_front();
        if !items.is_empty() {
            self.clients.push_back((client, items));
        }
        item
    }

    /// Takes an item out, wherever it is; whether it was there.
    pub fn remove(&mut self, item: &T) -> bool {
        let before = self.len();
        self.clients.iter_mut().for_each(|(_, items)| items.retain(|i| i != item));
        self.clients.retain(|(_, items)| !items.is_empty());
        self.len() < before
    }

    /// Items that will be taken before this one.
    #[must_use]
    pub fn position(&self, item: &T) -> Option<usize> {
        let place = |(_, items): &(String, VecDeque<T>)| items.iter().position(|i| i == item);
        let (mine, depth) = self.clients.iter().enumerate().find_map(|(c, entry)| Some((c, place(entry)?)))?;
        // Every client in front has its turn `depth + 1` times before, every one behind `depth` times.
        let rounds = |c: usize| if c < mine { depth + 1 } else { depth };
        Some(self.clients.iter().enumerate().map(|(c, (_, items))| items.len().min(rounds(c))).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> Turns<u32> {
        let mut turns = Turns::default();
        (0..4).for_each(|i| turns.push("busy", i));
        (10..12).for_each(|i| turns.push("second", i));
        turns.push("third", 20);
        turns
    }

    fn drained(mut turns: Turns<u32>) -> Vec<u32> {
        std::iter::from_fn(|| turns.pop()).collect()
    }

    #[test]
    fn clients_take_turns() {
        assert_eq!(drained(filled()), [0, 10, 20, 1, 11, 2, 3]);
    }

    #[test]
    fn positions_are_the_order_of_taking() {
        let turns = filled();
        for (i, item) in [0, 10, 20, 1, 11, 2, 3].iter().enumerate() {
            assert_eq!(turns.position(item), Some(i), "{item}");
        }
        assert_eq!(turns.position(&99), None);
    }

    #[test]
    fn an_item_put_back_is_next_and_one_removed_is_gone() {
        let mut turns = filled();
        let first = turns.pop().unwrap();
        turns.put_back("busy", first);
        assert!(turns.remove(&20) && !turns.remove(&20));
        assert_eq!(turns.len(), 6);
        assert_eq!(drained(turns), [0, 10, 1, 11, 2, 3]);
    }
}
