//! The SQL side: orders, and the outbox of effects that Redis may lack.

use rusqlite::{Connection, Result, Transaction, params};

/// An order of a customer.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) id: i64,
    pub(crate) customer: i64,
    /// Name of the picking list.
    pub(crate) list: String,
    pub(crate) gift: bool,
}

/// The change in Redis that an outbox row stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Effect {
    /// One piece less in stock, one line more on the picking list.
    Reserve,
    /// One piece more in stock.
    GiveBack,
}

impl Effect {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::GiveBack => "give back",
        }
    }
}

/// One effect that Redis may lack.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) order: Order,
    pub(crate) effect: Effect,
}

/// The database.
#[derive(Debug)]
pub(crate) struct Database {
    sql: Connection,
}

impl Database {
    pub(crate) fn open() -> Result<Self> {
        let sql = Connection::open_in_memory()?;
        // The foreign key is checked at COMMIT, so that COMMIT fails.
        sql.execute_batch(
            "PRAGMA foreign_keys = ON;
             CREATE TABLE customers (id INTEGER PRIMARY KEY);
             INSERT INTO customers VALUES (1);
             CREATE TABLE orders (
                 id INTEGER PRIMARY KEY,
                 customer INTEGER NOT NULL
                     REFERENCES customers (id) DEFERRABLE INITIALLY DEFERRED,
                 list TEXT NOT NULL,
                 gift INTEGER NOT NULL,
                 state TEXT NOT NULL DEFAULT 'placed'
             );
             CREATE TABLE outbox (
                 order_id INTEGER NOT NULL REFERENCES orders (id),
                 effect TEXT NOT NULL,
                 PRIMARY KEY (order_id, effect)
             );",
        )?;
        Ok(Self { sql })
    }

    /// Begins the transaction that places an order; the caller commits it.
    pub(crate) fn place(&mut self, order: &Order) -> Result<Transaction<'_>> {
        let sql = self.sql.transaction()?;
        sql.execute(
            "INSERT INTO orders (id, customer, list, gift) VALUES (?, ?, ?, ?)",
            params![order.id, order.customer, order.list, order.gift],
        )?;
        sql.execute(
            "INSERT INTO outbox VALUES (?, ?)",
            params![order.id, Effect::Reserve.as_str()],
        )?;
        Ok(sql)
    }

    /// Deletes the row, because Redis has its effect.
    pub(crate) fn delivered(&mut self, row: &Row) -> Result<()> {
        delete(&self.sql, row)
    }

    /// Cancels the order. `owed` is the effect that undoes its applied part.
    pub(crate) fn cancel(&mut self, row: &Row, owed: Option<Effect>) -> Result<()> {
        let sql = self.sql.transaction()?;
        sql.execute("UPDATE orders SET state = 'cancelled' WHERE id = ?", [row.order.id])?;
        delete(&sql, row)?;
        if let Some(effect) = owed {
            let values = params![row.order.id, effect.as_str()];
            sql.execute("INSERT INTO outbox VALUES (?, ?)", values)?;
        }
        sql.commit()
    }

    /// The rows of the outbox, oldest order first.
    pub(crate) fn outbox(&self) -> Result<Vec<Row>> {
        let mut rows = self.sql.prepare(
            "SELECT id, customer, list, gift, effect FROM outbox JOIN orders ON id = order_id
             ORDER BY id",
        )?;
        let rows = rows.query_map([], |row| {
            let order = Order {
                id: row.get(0)?,
                customer: row.get(1)?,
                list: row.get(2)?,
                gift: row.get(3)?,
            };
            let reserves = row.get::<_, String>(4)? == Effect::Reserve.as_str();
            Ok(Row { order, effect: if reserves { Effect::Reserve } else { Effect::GiveBack } })
        })?;
        rows.collect()
    }

    /// The orders that are not cancelled.
    pub(crate) fn placed(&self) -> Result<Vec<i64>> {
        let mut ids =
            self.sql.prepare("SELECT id FROM orders WHERE state = 'placed' ORDER BY id")?;
        ids.query_map([], |row| row.get(0))?.collect()
    }
}

fn delete(sql: &Connection, row: &Row) -> Result<()> {
    sql.execute(
        "DELETE FROM outbox WHERE order_id = ? AND effect = ?",
        params![row.order.id, row.effect.as_str()],
    )?;
    Ok(())
}
