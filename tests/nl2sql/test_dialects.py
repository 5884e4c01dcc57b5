"""Untrusted SQL, schemas and values on the databases that companies have: real servers, and DuckDB files."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import duckdb
import pytest
import sqlalchemy

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.databases import Databases, open_databases
from chatmetrics.components.nl2sql.databases.execution import FailureMode
from chatmetrics.components.nl2sql.schema import ForeignKey
from chatmetrics.components.nl2sql.sqlite_file import BrokenDatabaseError
from chatmetrics.components.nl2sql.verdict import StrictVerdict
from chatmetrics.pipelines.doctor.database_check import checked_database
from tests.nl2sql.hotels import DIALECTS

LIMIT = 3.0  # seconds
OK, REFUSED, TIMED_OUT = FailureMode.OK, FailureMode.REFUSED, FailureMode.TIMED_OUT
EXECUTION_ERROR = FailureMode.EXECUTION_ERROR
OVER_MEMORY, UNKNOWN_NAME, DOES_NOT_PARSE = (
    FailureMode.OVER_MEMORY,
    FailureMode.UNKNOWN_NAME,
    FailureMode.DOES_NOT_PARSE,
)
COUNTED = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {}) SELECT {}"
EVERYWHERE = {
    "SELECT name FROM hotel ORDER BY id": OK,
    "SELECT name FROM hotel WHERE name LIKE '%饭店' AND id % 2 = 1": OK,
    "WITH h (a, b) AS (SELECT id, name FROM hotel) SELECT count(*) FROM h WHERE (a, b) IN (SELECT 1, 'x')": OK,
    "SELECT name, RANK() OVER (PARTITION BY city_id ORDER BY price DESC) FROM hotel;;": OK,
    "SELECT CASE WHEN (price) > 1 THEN COALESCE(name, 'a (b)') ELSE UPPER(name) END FROM hotel -- pg_sleep(1)": OK,
    "SELECT CAST(price AS decimal(10, 1)), round(avg(id), 2), count(DISTINCT (name)) FROM hotel GROUP BY price": OK,
    "SELECT 'load_file(1)' AS \"a (b)\" FROM hotel /* sleep(1) */": OK,
    "SELECT name FROM hotel WHERE name <> '' AND replace(name, ' ', '_') <> ' ' AND id > 0": OK,
    "SELECT name -- a comment\n FROM hotel /* and\n another */ WHERE id - -1 > 0": OK,
    "FROM " * 20_000: DOES_NOT_PARSE,
    f"SELECT 1 {'+ 1 ' * 20_000}": DOES_NOT_PARSE,
    f"SELECT {'CAST(1 AS DECIMAL(' * 25}": DOES_NOT_PARSE,
    f"SELECT {'ARRAY[' * 18}1{']' * 18}": DOES_NOT_PARSE,
    f"SELECT '{'x' * 200_000}'": DOES_NOT_PARSE,
    "SELECT '\ud800'": DOES_NOT_PARSE,
    "SELECT a ->> .b FROM hotel": DOES_NOT_PARSE,
    "INSERT INTO hotel (id) VALUES (9)": REFUSED,
    "UPDATE hotel SET name = 'x'": REFUSED,
    "DELETE FROM hotel": REFUSED,
    "DROP TABLE hotel": REFUSED,
    "CREATE TABLE mine AS SELECT 1": REFUSED,
    "CREATE TEMPORARY TABLE mine (id int)": REFUSED,
    "TRUNCATE TABLE hotel": REFUSED,
    "SELECT 1; DROP TABLE hotel": REFUSED,
    "SELECT 1; COMMIT; DELETE FROM hotel": REFUSED,
    "SELECT no_such_function(1)": REFUSED,
    "SELECT stars FROM hotel": UNKNOWN_NAME,
    "SELECT * FROM motel": UNKNOWN_NAME,
    "SELECT FROM WHERE": DOES_NOT_PARSE,
    "": FailureMode.NO_SQL,
    "-- nothing": FailureMode.NO_SQL,
    COUNTED.format(2_000_000_000, "count(*) FROM n"): TIMED_OUT,
    COUNTED.format(5000, "count(*) FROM n"): OK,
    COUNTED.format(2000, "a.x FROM n a, n b"): OVER_MEMORY,
}
OF_DIALECT = {
    "postgresql": {
        "COPY hotel TO '/tmp/chatmetrics'": REFUSED,
        "COPY hotel TO PROGRAM 'true'": REFUSED,
        "SELECT * INTO mine FROM hotel": REFUSED,
        "SELECT lo_export(1, '/tmp/chatmetrics')": REFUSED,
        "SELECT pg_read_file('/etc/passwd')": REFUSED,
        "SELECT dblink('x', 'y')": REFUSED,
        "SELECT set_config('transaction_read_only', 'off', false)": REFUSED,
        "SELECT pg_notify('a', 'b')": REFUSED,
        # A call without parentheses.
        "SELECT (2::float8).pg_sleep": REFUSED,
        "SELECT x.pg_sleep FROM unnest(ARRAY[2::float8]) AS x": REFUSED,
        "SELECT ('work_mem'::text).current_setting": REFUSED,
        'SELECT (1::int8) . "pg_advisory_lock"': REFUSED,
        "SELECT h.name, (h).price FROM hotel AS h": OK,
        "SELECT name, setting FROM pg_settings": REFUSED,
        'SELECT * FROM pg_catalog."pg_stat_activity"': REFUSED,
        "VALUES (1, 2), (3, 4)": OK,
        "WITH a AS MATERIALIZED (SELECT 1) SELECT * FROM a": OK,
        "SELECT name FROM hotel TABLESAMPLE BERNOULLI (100)": OK,
        "SELECT 1 OPERATOR(pg_catalog.+) 1, B'101'::bit(3), '1'::double precision": OK,
        "SELECT array_agg(id ORDER BY id), 2 = ANY (ARRAY[1, 2]), (ARRAY[[1, 2], [3, 4]])[1][2] FROM hotel": OK,
        "SELECT ARRAY[10::numeric^5000]": OK,
        "SELECT (repeat('[', 5000) || repeat(']', 5000))::json": EXECUTION_ERROR,
        "SELECT (repeat('9', 5000))::jsonb": EXECUTION_ERROR,
    },
    "mariadb": {
        "SELECT LOAD_FILE('/etc/passwd')": REFUSED,
        "SELECT load_file /* a */ ('/etc/passwd')": REFUSED,
        "WITH load_file (a) AS (SELECT 1) SELECT load_file('/etc/passwd')": REFUSED,
        "SELECT `load_file`('/etc/passwd')": REFUSED,
        "SELECT name FROM hotel INTO OUTFILE '/tmp/chatmetrics'": REFUSED,
        "SELECT name INTO DUMPFILE '/tmp/chatmetrics' FROM hotel LIMIT 1": REFUSED,
        "SELECT name FROM hotel INTO @kept": REFUSED,
        "SELECT name FROM hotel /*! INTO OUTFILE '/tmp/chatmetrics' */": REFUSED,
        "SELECT name FROM hotel /*M!100100 INTO OUTFILE '/tmp/chatmetrics' */": REFUSED,
        "SELECT 1 --load_file('/etc/passwd')": REFUSED,  # no comment: there is no blank after the dashes
        "SELECT 1 # load_file('/etc/passwd')": OK,
        "SELECT 'a\\'' , load_file('/etc/passwd') , '\\''": REFUSED,
        'SELECT "a\\"" , load_file(\'/etc/passwd\') , "\\""': REFUSED,
        "SELECT SLEEP(10)": REFUSED,
        "SELECT BENCHMARK(1000000000, MD5('a'))": REFUSED,
        "SELECT GET_LOCK('a', 1)": REFUSED,
        "SELECT @a := 1": REFUSED,
        "SELECT @@version": REFUSED,
        "SELECT * FROM information_schema.processlist": REFUSED,
        "SELECT * FROM `mysql` . user": REFUSED,
        "SELECT 1 #> '\n, SLEEP(2) #> '": REFUSED,
        "SELECT CONVERT(_ucs2 x'D800' USING utf8mb4)": EXECUTION_ERROR,
        "SELECT REPEAT('x', 15000000) FROM hotel a, hotel b, hotel c, hotel d": OVER_MEMORY,
        "SELECT USER(), name FROM hotel USE INDEX (PRIMARY)": OK,
        "SELECT j.a FROM JSON_TABLE('[{\"a\": 1}]', '$[*]' COLUMNS (a int PATH '$.a')) AS j": OK,
        "SELECT * FROM hotel PROCEDURE ANALYSE()": DOES_NOT_PARSE,
        "SELECT name FROM hotel FOR UPDATE": REFUSED,
        "SELECT name FROM hotel LOCK IN SHARE MODE": REFUSED,
        "SELECT GROUP_CONCAT(name ORDER BY id SEPARATOR '; '), DATE_FORMAT(MAX(opened), '%Y'), IF(1 > 2, 'a', 'b'), "
        "TIMESTAMPDIFF(YEAR, MIN(opened), NOW()) FROM hotel GROUP BY city_id": OK,
        "SELECT `name` FROM `hotel` WHERE name REGEXP '^R' AND opened + INTERVAL 1 DAY < CURDATE()": OK,
    },
    "duckdb": {
        "COPY hotel TO '/tmp/chatmetrics'": REFUSED,
        "EXPORT DATABASE '/tmp/chatmetrics'": DOES_NOT_PARSE,
        "ATTACH '/tmp/chatmetrics' AS other": REFUSED,
        "INSTALL httpfs": REFUSED,
        "LOAD httpfs": REFUSED,
        "SET lock_configuration = false": REFUSED,
        "PRAGMA database_list": REFUSED,
        "CALL duckdb_settings()": REFUSED,
        "SELECT * FROM read_csv('/etc/passwd')": REFUSED,
        "SELECT * FROM read_text /* a */ ('/etc/passwd')": REFUSED,
        "FROM \"read_text\"('/etc/passwd')": REFUSED,
        "WITH read_text (a) AS (SELECT 1) SELECT * FROM read_text('/etc/passwd')": REFUSED,
        "SELECT * FROM '/etc/passwd'": UNKNOWN_NAME,
        'SELECT * FROM "/etc/passwd"': UNKNOWN_NAME,
        "SELECT * FROM glob('/*')": REFUSED,
        "SELECT getenv('PATH')": REFUSED,
        "SELECT current_setting('memory_limit')": REFUSED,
        "SELECT * FROM duckdb_settings()": REFUSED,
        "SELECT * FROM query('SELECT 1')": REFUSED,
        "SELECT sleep_ms(30000)": REFUSED,
        "SELECT sleep_ms(2000) FROM (SELECT 1) AS 'sleep_ms'(a)": REFUSED,
        "FROM duckdb_databases": REFUSED,
        "SELECT name FROM pg_catalog.pg_settings": REFUSED,
        "SELECT histogram(opened) FROM hotel WHERE opened IS NOT NULL": OK,
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY id) FROM hotel": OK,
        "PIVOT hotel ON mood USING count(*)": OK,
        "SELECT INTERVAL 3000000 YEAR": EXECUTION_ERROR,
        "SELECT repeat('x', 4000000000)": OVER_MEMORY,
        "SELECT length(repeat('x', 1500000000))": OVER_MEMORY,
        "SELECT count(*) FROM range(100000000000)": TIMED_OUT,
        "FROM hotel": OK,
        "SELECT * EXCLUDE (name) FROM hotel QUALIFY row_number() OVER (ORDER BY id) = 1": OK,
        "SELECT list_transform([1, 2], lambda x: x + 1), strftime(opened, '%Y'), unnest([1]) FROM hotel": OK,
        "SELECT map {'a': 1}, {'a': 1}.a, price::varchar FROM hotel": OK,
    },
}
CASES = [
    pytest.param(dialect, sql, failure, id=f"{dialect}-{sql}")
    for dialect in DIALECTS
    for sql, failure in (EVERYWHERE | OF_DIALECT[dialect]).items()
]


@pytest.fixture(scope="module")
def opened(addresses: dict[str, str]) -> Iterator[dict[str, Databases]]:
    databases = {dialect: open_databases(address, LIMIT) for dialect, address in addresses.items()}
    yield databases
    for database in databases.values():
        database.__exit__(None, None, None)


def databases_of(opened: dict[str, Databases], dialect: str) -> Databases:
    if dialect not in opened:
        pytest.skip(f"{dialect} is not installed")
    return opened[dialect]


@pytest.mark.parametrize(("dialect", "sql", "failure"), CASES)
def test_a_query_gets_its_failure_mode(
    dialect: str, sql: str, failure: FailureMode, opened: dict[str, Databases]
) -> None:
    databases = databases_of(opened, dialect)
    result, tables = databases.execute(
        "hotels", [sql, "SELECT (SELECT count(*) FROM hotel), (SELECT max(id) FROM city)"]
    )
    # On a busy machine, the time may be over before the memory is.
    expected = {OVER_MEMORY, TIMED_OUT} if failure is OVER_MEMORY else {failure}
    assert result.failure in expected, result.message
    assert (result.message == "") is (result.failure is OK)
    assert tables.rows == [(3, 2)], tables.message
    assert not Path("/tmp/chatmetrics").exists()


# What is a comment for sqlglot and code for a server, or the other way round.
READ_TWICE = {
    "postgresql": [
        "SELECT 1 /* /* */* */ , pg_sleep(2) -- */",
        "SELECT 5 #-- '\n 1, pg_sleep(2) --'",
        "SELECT 1 {# a #}, pg_sleep(2)",
    ],
    "mariadb": [
        "SELECT 1 /* /* */* */ , SLEEP(2) -- */",
        "SELECT {#\nfn SLEEP(2)} + #}\n 1",
        "SELECT 1--\u3000, SLEEP(2)\n FROM (SELECT 1 AS `\u3000`) t",
        "SELECT 1 /*+ SET_VAR(max_statement_time=0) */, SLEEP(2)",
    ],
    "duckdb": [
        "SELECT 1 /* /* */* */ , sleep_ms(2000) -- */",
        "SELECT 1 /* /* */* */ ; CREATE TEMP TABLE hotel AS SELECT 99 AS id -- */",
        "SELECT 1 /* /* */* */ ; CREATE TEMP MACRO upper(x) AS 'hacked' -- */",
    ],
}


@pytest.mark.parametrize(("dialect", "sql"), [(dialect, sql) for dialect, texts in READ_TWICE.items() for sql in texts])
def test_a_server_gets_no_comment_that_it_could_read_as_code(
    dialect: str, sql: str, opened: dict[str, Databases]
) -> None:
    databases = databases_of(opened, dialect)
    result, *after = databases.execute("hotels", [sql, "SELECT count(*) FROM hotel", "SELECT upper('a')"])
    assert result.seconds < 1.9 and result.failure is not TIMED_OUT
    assert [each.rows for each in after] == [[(3,)], [("A",)]]


@pytest.mark.parametrize(
    ("dialect", "sql"),
    [
        ("postgresql", "SELECT position('b' || repeat('a', 20000) in repeat('a', 600000))"),
        ("mariadb", "SELECT LOCATE(CONCAT(REPEAT('a', 20000), 'b'), REPEAT('a', 900000))"),
    ],
)
def test_a_query_that_cannot_be_canceled_does_not_hold_its_caller(
    dialect: str, sql: str, opened: dict[str, Databases]
) -> None:
    slow, after = databases_of(opened, dialect).execute("hotels", [sql, "SELECT count(*) FROM hotel"])
    assert slow.failure is TIMED_OUT and slow.seconds < LIMIT + 10
    assert after.rows == [(3,)], after.message


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_schema_is_read_from_the_catalog(dialect: str, opened: dict[str, Databases]) -> None:
    schema = databases_of(opened, dialect).structure("hotels")
    tables = {table.name: table for table in schema.tables}
    assert {name: table.kind for name, table in tables.items()} == {
        "city": "",
        "hotel": "",
        "Guest": "",
        "best": "view",
    }
    hotel = {column.name: column for column in tables["hotel"].columns}
    assert list(hotel) == ["id", "name", "price", "opened", "city_id", "city_year", "mood", "twice"]
    assert (hotel["id"].primary_key, hotel["name"].primary_key) == (1, 0)
    assert {column.name: column.primary_key for column in tables["city"].columns} == {"id": 2, "year": 1, "name": 0}
    assert hotel["price"].description == "per night, in euro"
    assert "'good'" in hotel["mood"].type and "'bad'" in hotel["mood"].type
    assert set(schema.foreign_keys) == {
        ForeignKey("hotel", "city_year", "city", "year"),
        ForeignKey("hotel", "city_id", "city", "id"),
        ForeignKey("Guest", "hotelId", "hotel", "id"),
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_names_in_a_prompt_run_as_they_are_shown(dialect: str, opened: dict[str, Databases]) -> None:
    databases = databases_of(opened, dialect)
    prompt = databases.schema("hotels")
    mark = "`" if dialect == "mariadb" else '"'
    quotes = {"postgresql": True, "mariadb": False, "duckdb": False}[dialect]
    name, column = (f"{mark}Guest{mark}", f"{mark}hotelId{mark}") if quotes else ("Guest", "hotelId")
    assert f"CREATE TABLE {name} (" in prompt and f"\n{column} " in prompt
    assert "FOREIGN KEY (city_year, city_id) REFERENCES city (year, id)" in prompt
    [result] = databases.execute("hotels", [f"SELECT {column} FROM {name} WHERE id = 3"])
    assert result.rows == [(2,)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_sample_values_are_those_of_the_tables(dialect: str, opened: dict[str, Databases]) -> None:
    schema = databases_of(opened, dialect).structure("hotels", 2)
    samples = {
        column.name: column.samples for table in schema.tables if table.name == "hotel" for column in table.columns
    }
    assert samples["name"] == ("Adler", "Ritz")
    assert samples["price"] == ("0.25", "10.50")
    assert samples["opened"] == ("1929-08-01", "2001-02-03")
    assert not any(column.samples for table in schema.tables if table.kind for column in table.columns)


VALUES = {
    "SELECT price, opened FROM hotel ORDER BY id": [(10.5, "1929-08-01"), (20, None), (0.25, "2001-02-03")],
    "SELECT avg(id), sum(price) / count(*), 1 = 1 FROM hotel": [(2, 10.25, 1)],
    "SELECT note, mood FROM {guest} JOIN hotel ON hotel.id = {hotel_id} ORDER BY {guest}.id": [
        *[("a (b) -- c", "good"), (None, "good"), ("it's", "bad")]
    ],
    "SELECT CAST('2024-05-01 08:30:00' AS {timestamp}), CAST('2024-05-01' AS date)": [
        ("2024-05-01 08:30:00", "2024-05-01")
    ],
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sql", VALUES)
def test_equal_values_of_all_dialects_are_equal(sql: str, dialect: str, opened: dict[str, Databases]) -> None:
    databases = databases_of(opened, dialect)
    mark = "`" if dialect == "mariadb" else '"'
    timestamp = "datetime" if dialect == "mariadb" else "timestamp"
    text = sql.format(guest=f"{mark}Guest{mark}", hotel_id=f"{mark}hotelId{mark}", timestamp=timestamp)
    [result] = databases.execute("hotels", [text])
    assert result.rows == VALUES[sql], result.message


UNUSUAL = {
    "postgresql": {
        "SELECT 'infinity'::date, '0044-03-15 BC'::date, 'infinity'::timestamp": (
            "infinity",
            "0044-03-15 BC",
            "infinity",
        ),
        "SELECT 'NaN'::numeric, 'Infinity'::numeric, 'NaN'::float8": ("NaN", float("inf"), "NaN"),
        "SELECT '1 year 2 mons'::interval, '90 minutes'::interval": ("1 year 2 mons", "01:30:00"),
        "SELECT 'ab'::char(5), '2024-01-01 08:00+08'::timestamptz": ("ab", "2024-01-01 00:00:00+00:00"),
        "SELECT '{\"b\": 1, \"a\": [1.5, null]}'::jsonb, ARRAY[1, 2], '\\x01'::bytea, '[1,3)'::int4range": (
            *('{"a": [1.5, null], "b": 1}', "[1, 2]", b"\x01", "[1, 3)"),
        ),
    },
    "mariadb": {
        "SELECT CAST('26:03:04' AS time), CAST('-1:00:00' AS time), 1 / 3": (
            "26:03:04",
            "-1:00:00",
            pytest.approx(1 / 3),
        ),
        "SELECT x'01', CAST('2024-05-01 08:30:00.5' AS datetime(1))": (b"\x01", "2024-05-01 08:30:00.500000"),
    },
    "duckdb": {
        "SELECT 'nan'::float, [1.5, NULL], {'b': 1, 'a': 'x'}, '\\x01'::blob": (
            "NaN",
            "[1.5, null]",
            '{"a": "x", "b": 1}',
            b"\x01",
        ),
        "SELECT INTERVAL 90 MINUTE, '2024-01-01 08:00+08'::timestamptz, 170141183460469231731687303715884105727": (
            *("1:30:00", "2024-01-01 00:00:00+00:00", 170141183460469231731687303715884105727),
        ),
    },
}


@pytest.mark.parametrize(
    ("dialect", "sql"), [(dialect, sql) for dialect, queries in UNUSUAL.items() for sql in queries]
)
def test_values_that_sqlite_lacks_have_one_form(dialect: str, sql: str, opened: dict[str, Databases]) -> None:
    [result] = databases_of(opened, dialect).execute("hotels", [sql])
    assert result.rows == [UNUSUAL[dialect][sql]], result.message


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("gold", "predicted", "right"),
    [
        # NULLs sort first or last, whatever the database does.
        ("SELECT name FROM hotel ORDER BY opened", "SELECT name FROM hotel ORDER BY opened", True),
        ("SELECT name FROM hotel ORDER BY opened", "SELECT name FROM hotel ORDER BY opened DESC", False),
        ("SELECT name FROM hotel ORDER BY id > 0", "SELECT name FROM hotel ORDER BY id DESC", True),
        ("SELECT avg(price) FROM hotel", "SELECT sum(price) / count(price) FROM hotel", True),
        ("SELECT count(*) FROM hotel", "SELECT 3.0", True),
    ],
)
def test_the_verdict_follows_the_database_s_order(
    gold: str, predicted: str, right: bool, dialect: str, opened: dict[str, Databases]
) -> None:
    execute = partial(databases_of(opened, dialect).execute, "hotels")
    gold_result, result = execute([gold, predicted])
    assert (gold_result.failure, result.failure) == (OK, OK)
    assert StrictVerdict("", gold, gold_result, execute).is_right(predicted, result) is right


@pytest.mark.parametrize(("dialect", "owner"), [("postgresql", "admin@"), ("mariadb", "root@")])
def test_a_snapshot_hides_what_others_write_meanwhile(
    dialect: str, owner: str, addresses: dict[str, str], opened: dict[str, Databases]
) -> None:
    databases = databases_of(opened, dialect)
    writer = sqlalchemy.create_engine(addresses[dialect].replace("reader@", owner).format(db_id="hotels"))

    def write(sql: str) -> None:
        with writer.begin() as connection:
            connection.exec_driver_sql(sql)

    def count() -> int:
        return int(databases.execute("hotels", ["SELECT count(*) FROM hotel"])[0].rows[0][0])

    try:
        with databases.snapshot(["hotels"]):
            before = count()
            write("INSERT INTO hotel (id, name) VALUES (9, 'new')")
            failed = databases.execute("hotels", ["SELECT nowhere FROM hotel", "SELECT 1 FROM nothing"])
            assert [result.failure for result in failed] == [UNKNOWN_NAME] * 2
            assert count() == before == 3
            if dialect == "postgresql":  # elsewhere, a query that had to be ended loses the transaction
                [slow] = databases.execute("hotels", [COUNTED.format(2_000_000_000, "count(*) FROM n")])
                assert (slow.failure, count()) == (TIMED_OUT, before)
        assert count() == 4
    finally:
        write("DELETE FROM hotel WHERE id = 9")
        writer.dispose()
    assert count() == 3


def test_on_mariadb_a_query_that_is_ended_lets_the_others_see_a_newer_state(opened: dict[str, Databases]) -> None:
    databases = databases_of(opened, "mariadb")
    with databases.snapshot(["hotels"]):
        texts = [COUNTED.format(2_000_000_000, "count(*) FROM n"), COUNTED.format(2000, "a.x FROM n a, n b")]
        ended = databases.execute("hotels", [*texts, "SELECT count(*) FROM hotel"])
        assert [result.failure for result in ended] == [TIMED_OUT, OVER_MEMORY, OK], ended[0].message


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_missing_database_is_named(dialect: str, opened: dict[str, Databases]) -> None:
    with pytest.raises(InputError, match="database 'motels'"):
        databases_of(opened, dialect).check("motels")


def test_an_account_of_mariadb_that_may_do_more_than_read_is_refused(addresses: dict[str, str]) -> None:
    if "mariadb" not in addresses:
        pytest.skip("MariaDB is not installed")
    root = addresses["mariadb"].replace("reader@", "root@")
    engine = sqlalchemy.create_engine(root.format(db_id="mysql"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE USER files")
        connection.exec_driver_sql("GRANT FILE ON *.* TO files")
        connection.exec_driver_sql("GRANT ALL ON hotels.* TO files")
        connection.exec_driver_sql("CREATE USER writer")
        connection.exec_driver_sql("GRANT ALL ON hotels.* TO writer")
    engine.dispose()
    for user, rights in (("root", "ALL PRIVILEGES"), ("files", "FILE")):
        with (
            open_databases(root.replace("root@", f"{user}@"), LIMIT) as databases,
            pytest.raises(InputError, match=f"the user '{user}' has the rights of {rights}"),
        ):
            databases.check("hotels")
    # The server refuses what the account may do, because the transaction only reads.
    with open_databases(root.replace("root@", "writer@"), LIMIT) as databases:
        databases.check("hotels")
        assert not any(table.name.startswith("chat") for table in databases.structure("hotels").tables)


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"])
def test_doctor_reports_what_the_account_may_do_beyond_reading(dialect: str, addresses: dict[str, str]) -> None:
    if dialect not in addresses:
        pytest.skip(f"{dialect} is not installed")
    address = addresses[dialect].format(db_id="hotels")
    owner = address.replace("reader@", "admin@" if dialect == "postgresql" else "root@")
    engine = sqlalchemy.create_engine(owner, isolation_level="AUTOCOMMIT")
    new = {
        "postgresql": ["CREATE ROLE clerk LOGIN", "GRANT SELECT, INSERT ON hotel, city TO clerk"],
        "mariadb": ["CREATE USER clerk", "GRANT SELECT, INSERT ON hotels.hotel TO clerk"],
    }
    with engine.connect() as connection:
        if dialect == "postgresql":  # which everybody has by default
            connection.exec_driver_sql("REVOKE TEMPORARY ON DATABASE hotels FROM PUBLIC")
        for text in new[dialect]:
            connection.exec_driver_sql(text)
    engine.dispose()
    line = checked_database(address)
    assert line.startswith("ok       database hotels: 4 tables and views, 3 foreign keys; ")
    assert line.endswith("a write is refused; reader may only read")
    line = checked_database(address.replace("reader@", "clerk@"))
    title, right = (
        ("PostgreSQL 15", "INSERT on 2 tables, for example city")
        if dialect == "postgresql"
        else ("MariaDB", "INSERT on `hotels`.`hotel`")
    )
    assert title in line and line.endswith(f"clerk may also, outside of our transactions: {right}"), line


def test_doctor_checks_one_database(addresses: dict[str, str]) -> None:
    assert checked_database(addresses["duckdb"].format(db_id="hotels")).endswith("DuckDB; a write is refused")
    with pytest.raises(InputError, match=r"write the name of a database for \{db_id\}"):
        checked_database(addresses["duckdb"])
    with pytest.raises(InputError, match="spider/database is no address"):
        checked_database("spider/database")


def test_bits_of_mariadb_are_numbers(addresses: dict[str, str]) -> None:
    if "mariadb" not in addresses:
        pytest.skip("MariaDB is not installed")
    engine = sqlalchemy.create_engine(
        addresses["mariadb"].replace("reader@", "root@").format(db_id="mysql"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE flags")
        connection.exec_driver_sql("CREATE TABLE flags.flag (value bit(3))")
        connection.exec_driver_sql("INSERT INTO flags.flag VALUES (b'101')")
        connection.exec_driver_sql("GRANT SELECT ON flags.* TO reader")
    engine.dispose()
    with open_databases(addresses["mariadb"], LIMIT) as databases:
        assert databases.execute("flags", ["SELECT value FROM flag"])[0].rows == [(5,)]


def test_a_duckdb_file_is_opened_again_when_it_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "shop.duckdb"

    def write(rows: int) -> None:
        path.unlink(missing_ok=True)
        with duckdb.connect(str(path)) as connection:
            connection.execute(f"CREATE TABLE item AS SELECT * FROM range({rows})")

    write(3)
    with open_databases(f"duckdb:///{tmp_path}/{{db_id}}.duckdb", LIMIT) as databases:
        assert databases.execute("shop", ["SELECT count(*) FROM item"])[0].rows == [(3,)]
        write(5)
        assert databases.execute("shop", ["SELECT count(*) FROM item"])[0].rows == [(5,)]


@pytest.mark.parametrize(("content", "message"), [(b"no database" * 400, "cannot be"), (b"", "no tables|cannot be")])
def test_a_file_that_is_no_duckdb_database_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "shop.duckdb").write_bytes(content)
    with (
        open_databases(f"duckdb:///{tmp_path}/{{db_id}}.duckdb", LIMIT) as databases,
        pytest.raises(BrokenDatabaseError, match=rf"shop\.duckdb: .*({message})"),
    ):
        databases.structure("shop")
    with (
        open_databases(f"duckdb:///{tmp_path}/{{db_id}}.duckdb", LIMIT) as databases,
        pytest.raises(InputError, match="is not the name of a database"),
    ):
        databases.check("../shop")
