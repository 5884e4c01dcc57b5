"""Untrusted SQL on a real PostgreSQL server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import sqlalchemy

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.binding.binder import BoundQuery, bind_names
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.databases.execution import FailureMode
from chatmetrics.components.nl2sql.databases.server_databases import ServerDatabases
from chatmetrics.components.nl2sql.schema import ForeignKey
from chatmetrics.components.nl2sql.verdict import StrictVerdict
from tests.nl2sql.postgres import BINARIES, late_cancels, postgres

pytestmark = pytest.mark.skipif(BINARIES is None, reason="PostgreSQL is not installed")

LIMIT = 3.0  # seconds
QUERIES = {
    "SELECT name FROM hotel ORDER BY id": FailureMode.OK,
    "SELECT name FROM hotel WHERE name LIKE '%饭店' AND id % 2 = 1": FailureMode.OK,
    "WITH h AS (SELECT * FROM hotel) SELECT count(*) FROM h": FailureMode.OK,
    "SELECT name FROM hotel;": FailureMode.OK,
    "SELECT name FROM hotel;;": FailureMode.OK,
    "; SELECT name FROM hotel; /* x */ ; -- all names": FailureMode.OK,
    'SELECT $$a;b$$ AS ";";\n;': FailureMode.OK,
    "DROP TABLE hotel": FailureMode.REFUSED,
    "WITH gone AS (DELETE FROM hotel RETURNING id) SELECT * FROM gone": FailureMode.REFUSED,
    "SELECT * INTO copied FROM hotel": FailureMode.REFUSED,
    "SELECT name FROM hotel FOR UPDATE": FailureMode.REFUSED,
    "SELECT 1; COMMIT; DROP TABLE hotel": FailureMode.REFUSED,
    "COPY hotel TO '/tmp/x'": FailureMode.REFUSED,
    "SET default_transaction_read_only = off": FailureMode.REFUSED,
    "SELECT nextval('counter')": FailureMode.REFUSED,
    "SELECT pg_sleep(30)": FailureMode.REFUSED,
    "SELECT slow(30)": FailureMode.TIMED_OUT,
    "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b": FailureMode.TIMED_OUT,
    "SELECT * FROM generate_series(1, 1000000)": FailureMode.OVER_MEMORY,
    "SELECT repeat('x', 40000000)": FailureMode.OVER_MEMORY,
    "SELECT stars FROM hotel": FailureMode.UNKNOWN_NAME,
    "SELECT * FROM motel": FailureMode.UNKNOWN_NAME,
    "SELECT FROM WHERE": FailureMode.DOES_NOT_PARSE,
    # The server's own time limit does not count: it is switched off, or starts again at each FETCH.
    "SELECT set_config('statement_timeout', '0', true), slow(30)": FailureMode.REFUSED,
    "SELECT x, slow(0.003) FROM generate_series(1, 10000) AS x": FailureMode.TIMED_OUT,
    "SELECT unlimited(), slow(4.0) FROM generate_series(1, 3) AS x": FailureMode.TIMED_OUT,
    # A function that is not declared to compute only.
    "SELECT book()": FailureMode.REFUSED,
    'SELECT public . "book" /* a */ ()': FailureMode.REFUSED,
    "WITH book (a) AS (SELECT 1) SELECT book()": FailureMode.REFUSED,
    "WITH book (a) AS (SELECT 1) SELECT a FROM book": FailureMode.OK,
    "SELECT t.a FROM (VALUES (1), (2)) AS t (a) WHERE t.a IN (1)": FailureMode.OK,
    # The second string continues the first, with escapes, so that the third part is code.
    "SELECT E'a'\n'\\'' , pg_read_file($$/etc/passwd$$) --'": FailureMode.REFUSED,
    "SELECT 1 /* a /* b */ , pg_read_file('/etc/passwd') */": FailureMode.OK,
    "SELECT current_setting('data_directory')": FailureMode.REFUSED,
    "SELECT * FROM pg_stat_get_activity(NULL)": FailureMode.REFUSED,
    "SELECT count(*) FILTER (WHERE id > 1), percentile_cont(0.5) WITHIN GROUP (ORDER BY id), "
    "CAST(sum(price) AS numeric(10, 2)), extract(year FROM max(opened)) FROM hotel "
    "GROUP BY GROUPING SETS ((name), ()), CUBE (id)": FailureMode.OK,
    "SELECT row_number() OVER (PARTITION BY name ORDER BY id), COALESCE(tags->>0, to_char(opened, 'YYYY')), "
    "date_trunc('year', opened), now() - interval '1 day', random() < 2, left(name, 2) FROM hotel": FailureMode.OK,
    "SELECT pg_read_file('/etc/passwd')": FailureMode.REFUSED,
    "SELECT * FROM pg_catalog.Pg_Read_Binary_File('/etc/passwd')": FailureMode.REFUSED,
    "SELECT \"pg_ls_dir\"('/')": FailureMode.REFUSED,
    "SELECT U&\"pg\\005fread_file\"('/etc/passwd')": FailureMode.REFUSED,
    "SELECT E'\\' , pg_read_file($$/etc/passwd$$) --'": FailureMode.OK,  # a string
    "SELECT '\\' , pg_read_file($$/etc/passwd$$) --'": FailureMode.REFUSED,
    "SELECT lo_import('/etc/passwd')": FailureMode.REFUSED,
    "SELECT LO_GET /* a */ (1)": FailureMode.REFUSED,
    'SELECT pg_catalog."loread" -- a\n(1, 2)': FailureMode.REFUSED,
    "SELECT lo_revenue, pg_start FROM lineorder": FailureMode.OK,
    "SELECT sum(lo_revenue) AS lo_get FROM lineorder WHERE pg_start IN (1, 2)": FailureMode.OK,
    "SELECT ts_rewrite('a'::tsquery, 'SELECT lo' || '_get(1)')": FailureMode.REFUSED,
    "SELECT * FROM pg_hba_file_rules": FailureMode.REFUSED,
    "SELECT * FROM dblink('host=127.0.0.1', 'SELECT 1') AS x(a int)": FailureMode.REFUSED,
    "SELECT query_to_xml('SELECT 1', true, true, '')": FailureMode.REFUSED,
    "SELECT pg_terminate_backend(1)": FailureMode.REFUSED,
    "SELECT pg_advisory_lock(1)": FailureMode.REFUSED,
    "SELECT pg_typeof(id) FROM hotel WHERE id = 1": FailureMode.OK,
    "SELECT 1 / 0": FailureMode.EXECUTION_ERROR,
    "SELECT 1;; SELECT 2": FailureMode.REFUSED,
    "-- nothing": FailureMode.NO_SQL,
    ";;": FailureMode.NO_SQL,
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres(tmp_path_factory.mktemp("postgres")) as url:
        admin = sqlalchemy.create_engine(f"{url}/postgres", isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql("CREATE DATABASE hotels")
        admin.dispose()
        owner = sqlalchemy.create_engine(f"{url}/hotels")
        with owner.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE hotel (id int PRIMARY KEY, name text, price numeric, opened date, tags jsonb)"
            )
            rows = "(1, '和平饭店', 10.50, '1929-08-01', '[1]'), (2, 'Ritz', 20, NULL, NULL)"
            connection.exec_driver_sql(f"INSERT INTO hotel VALUES {rows}")
            connection.exec_driver_sql("CREATE TABLE lineorder (lo_revenue int, pg_start int)")  # SSB's names
            connection.exec_driver_sql("CREATE SEQUENCE counter")
            connection.exec_driver_sql('CREATE TABLE "Guest" (id int, "hotelId" int REFERENCES hotel)')
            connection.exec_driver_sql("CREATE VIEW best AS SELECT name AS best_name FROM hotel")
            # Its owner says that they compute only.
            connection.exec_driver_sql(
                "CREATE FUNCTION unlimited() RETURNS text STABLE LANGUAGE sql AS "
                "$$SELECT set_config('statement_timeout', '0', false)$$"
            )
            connection.exec_driver_sql(
                "CREATE FUNCTION slow(seconds numeric) RETURNS text STABLE LANGUAGE sql AS "
                "$$SELECT pg_sleep(seconds)::text$$"
            )
            connection.exec_driver_sql("CREATE FUNCTION book() RETURNS int LANGUAGE sql AS 'SELECT 1'")
            connection.exec_driver_sql("CREATE ROLE reader LOGIN")
            connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
            connection.exec_driver_sql("CREATE ROLE files LOGIN IN ROLE pg_read_server_files")
        owner.dispose()
        yield url.replace("admin@", "reader@")


@pytest.fixture(scope="module")
def databases(url: str) -> Iterator[ServerDatabases]:
    with open_databases(url + "/{db_id}", query_seconds=LIMIT) as opened:
        assert isinstance(opened, ServerDatabases)
        yield opened


@pytest.mark.parametrize("sql", QUERIES)
def test_a_query_gets_its_failure_mode(sql: str, databases: ServerDatabases) -> None:
    [result, count] = databases.execute("hotels", [sql, "SELECT count(*) FROM hotel"])
    assert result.failure == QUERIES[sql], result.message
    assert (result.message == "") is (result.failure is FailureMode.OK)
    assert result.seconds < LIMIT + 4  # a busy machine's own delays
    assert count.rows == [(2,)]


def test_every_function_for_large_objects_is_refused_as_a_function(databases: ServerDatabases) -> None:
    """The names are those of the running server's catalog."""
    listed = (
        "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace "
        "AND (proname LIKE 'lo\\_%%' OR proname IN ('loread', 'lowrite'))"
    )
    [names] = databases.execute("hotels", [listed.replace("%%", "%")])
    assert len(names.rows) == 18
    for (name,) in names.rows:
        call, column = databases.execute("hotels", [f"SELECT {name} (1)", f"SELECT id AS {name} FROM hotel"])
        assert (call.failure, column.failure) == (FailureMode.REFUSED, FailureMode.OK), name


def test_threads_that_use_a_database_first_share_its_connections(url: str) -> None:
    connected = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'reader' AND datname = 'template1'"
    admin = sqlalchemy.create_engine(url.replace("reader@", "admin@") + "/postgres")
    with open_databases(url + "/template1", query_seconds=LIMIT, connections=2) as databases:
        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(databases.execute, ["template1"] * 8, [["SELECT 1"]] * 8))
        with admin.connect() as connection:
            assert (
                connection.exec_driver_sql(connected).scalar_one() <= 3
            )  # two that are kept, and one that may still be closing
    admin.dispose()
    assert [result.rows for [result] in results] == [[(1,)]] * 8


def test_a_cancel_that_arrives_late_ends_no_other_query(url: str) -> None:
    """A proxy before the server delivers it while the next query runs."""
    query = "SELECT unlimited(), slow(1.4)"  # canceled from 1.0 s on, delivered from 1.6 s on
    with (
        late_cancels(sqlalchemy.make_url(url).port or 0, seconds=0.6) as port,
        open_databases(
            f"postgresql+psycopg://reader@127.0.0.1:{port}/hotels?sslmode=disable&gssencmode=disable", query_seconds=1.0
        ) as databases,
    ):
        late, following = databases.execute("hotels", [query, "SELECT slow(0.7)"])
    assert late.failure is FailureMode.TIMED_OUT
    assert following.failure is FailureMode.OK, following.message


@pytest.mark.parametrize(
    ("gold", "predicted", "right"),
    [
        ('SELECT name FROM hotel ORDER BY "id" > 0', "SELECT name FROM hotel ORDER BY id DESC", True),
        ('SELECT "id" AS "Id" FROM hotel ORDER BY "Id"', "SELECT id FROM hotel ORDER BY id DESC", False),
        ("SELECT name FROM hotel ORDER BY price::int > 5 NULLS FIRST", "SELECT name FROM hotel ORDER BY id DESC", True),
        ("SELECT name FROM hotel ORDER BY price::int NULLS LAST", "SELECT name FROM hotel ORDER BY id DESC", False),
        (
            "SELECT name, price > 5 AS p FROM hotel ORDER BY p",
            "SELECT name, price > 5 FROM hotel ORDER BY 1 DESC",
            True,
        ),
        (
            "(SELECT id FROM hotel) UNION (SELECT 2) ORDER BY id",
            "SELECT id FROM hotel ORDER BY id DESC",
            False,
        ),
        (
            'SELECT name FROM hotel ORDER BY "id" > 0 OFFSET 0 ROWS FETCH FIRST 1 ROWS ONLY',
            "SELECT name FROM hotel ORDER BY id DESC LIMIT 1",
            True,
        ),
    ],
)
def test_rows_that_tie_may_change_places(gold: str, predicted: str, right: bool, databases: ServerDatabases) -> None:
    execute = partial(databases.execute, "hotels")
    gold_result, result = execute([gold, predicted])
    assert (gold_result.failure, result.failure) == (FailureMode.OK, FailureMode.OK)
    assert StrictVerdict("", gold, gold_result, execute).is_right(predicted, result) is right


def test_values_are_converted_to_sqlite_s_types(databases: ServerDatabases) -> None:
    [result] = databases.execute("hotels", ["SELECT price, price * 2, opened, tags, id = 1 FROM hotel ORDER BY id"])
    assert result.rows == [(10.5, 21, "1929-08-01", "[1]", 1), (20, 40, None, None, 0)]


def test_an_unavailable_database_or_server_is_an_error_that_names_it(databases: ServerDatabases, url: str) -> None:
    databases.check("hotels")
    with pytest.raises(InputError, match=r"database 'motels' cannot be opened.*does not exist"):
        databases.check("motels")
    with (
        pytest.raises(InputError, match="cannot be opened"),
        ServerDatabases("postgresql+psycopg://x@127.0.0.1:1/y", 1) as nowhere,
    ):
        nowhere.check("y")
    with pytest.raises(InputError, match="the SQLAlchemy URL cannot be used"):
        open_databases("://", 1)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("sqlite:///{db_id}", "sqlite is not supported: name postgresql"),
        ("oracle://reader@host/{db_id}", "oracle is not supported: name postgresql"),
        ("nosuch://host/x", "nosuch is not supported: name postgresql"),
        ("mysql+mysqldb://reader@host/{db_id}", r"the driver mysqldb is not supported: write mysql\+pymysql://"),
        ("postgresql+psycopg2://host/db", r"the driver psycopg2 is not supported: write postgresql\+psycopg://"),
    ],
)
def test_a_server_or_driver_whose_protection_is_not_tested_is_refused(address: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^databases: .*{message}"):
        open_databases(address, 1)


@pytest.mark.parametrize(("user", "rights"), [("admin", "superuser"), ("files", "pg_read_server_files")])
def test_a_role_that_may_do_more_than_read_tables_is_refused(url: str, user: str, rights: str) -> None:
    with (
        open_databases(url.replace("reader@", f"{user}@") + "/{db_id}", query_seconds=3.0) as opened,
        pytest.raises(InputError, match=f"database 'hotels': the user '{user}' has the rights of {rights}"),
    ):
        opened.check("hotels")


def test_the_schema_is_shown(databases: ServerDatabases) -> None:
    assert databases.schema("hotels").startswith("CREATE TABLE hotel (\nid integer PRIMARY KEY,\nname text,\n")


def test_the_structure_has_tables_views_and_foreign_keys(databases: ServerDatabases) -> None:
    schema = databases.structure("hotels")
    columns = {table.name: [column.name for column in table.columns] for table in schema.tables}
    assert columns == {
        "hotel": ["id", "name", "price", "opened", "tags"],
        "Guest": ["id", "hotelId"],
        "best": ["best_name"],
        "lineorder": ["lo_revenue", "pg_start"],
    }
    assert schema.foreign_keys == (ForeignKey("Guest", "hotelId", "hotel", "id", 1),)


@pytest.mark.parametrize(
    ("sql", "bound"),
    [
        ("SELECT nam FROM hotel", "SELECT name FROM hotel"),
        ("SELECT hotelid FROM guest", 'SELECT "hotelId" FROM "Guest"'),
        (
            'SELECT g."hotelId", name FROM "Guest" AS g',
            'SELECT g."hotelId", hotel.name FROM "Guest" AS g JOIN hotel ON g."hotelId" = hotel.id',
        ),
        ("SELECT bestname FROM best", "SELECT best_name FROM best"),
    ],
)
def test_names_are_bound_as_the_server_resolves_them(sql: str, bound: str, databases: ServerDatabases) -> None:
    found = bind_names(sql, databases.structure("hotels"), databases.dialect)[0]
    assert found.sql == bound
    before, after = databases.execute("hotels", [sql, bound])
    assert (before.failure, after.failure) == (FailureMode.UNKNOWN_NAME, FailureMode.OK), after.message


@pytest.mark.parametrize("sql", [sql for sql, failure in QUERIES.items() if failure is FailureMode.OK])
def test_a_query_that_the_server_resolves_is_not_changed(sql: str, databases: ServerDatabases) -> None:
    assert bind_names(sql, databases.structure("hotels"), databases.dialect) == (BoundQuery(sql),)
