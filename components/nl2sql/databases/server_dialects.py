"""What differs between database servers: transactions that only read, time limits, rights, functions, and errors."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any, Protocol

import sqlalchemy

from chatmetrics.components.nl2sql.databases.execution import FailureMode, Result
from chatmetrics.components.nl2sql.databases.query_check import SYNTAX, Rules, words
from chatmetrics.components.redaction import one_line

# The name of a state of a database, or the connection whose transaction sees it.
Snapshot = tuple[str, sqlalchemy.Connection | None]


class ServerDialect(Protocol):
    """A kind of server.

    Attributes:
        name: its dialect of SQL, as sqlglot names it.
        title: its name for people.
        forbidden_write: a statement that the server has to refuse in a transaction that only reads, and one that undoes
            it.
        single_statement: options of an execution that make the driver refuse several statements and stream rows.
    """

    name: str
    title: str
    forbidden_write: tuple[str, str]
    single_statement: Mapping[str, object]

    def prepare(self, engine: sqlalchemy.Engine) -> None:
        """Set how values of new connections are read, before the first one."""

    def begin(self, connection: sqlalchemy.Connection, seconds: float, snapshot: str = "") -> None:
        """Begin a transaction that only reads, with the server's own time limit, on a new or pooled connection.

        Args:
            connection: the connection.
            seconds: the time limit of a statement.
            snapshot: name of the state that it sees; empty for the newest one.
        """

    def snapshot(self, engine: sqlalchemy.Engine) -> AbstractContextManager[Snapshot]:
        """Context manager: keep the current state of the database, by a name or in the transaction of a connection."""

    def powers(self, connection: sqlalchemy.Connection) -> list[str]:
        """The rights of the account with which a query could do more than read tables, as text."""

    def beyond_reading(self, connection: sqlalchemy.Connection) -> list[str]:
        """What else the account may do, as text: rights that a transaction which only reads does not grant a query."""

    def rules(self, connection: sqlalchemy.Connection) -> Rules:
        """The functions that a query may call, and names that it may not use."""

    def canceler(self, engine: sqlalchemy.Engine, connection: sqlalchemy.Connection) -> Callable[[], None]:
        """A function that ends the connection's current query, for another thread. It may be called repeatedly."""

    def failure_of(self, error: BaseException | None) -> Result:
        """The result of a query that failed with an error of the driver."""


class PostgreSQL:
    """PostgreSQL 13 and newer.

    A query may call what the server itself declares to compute only: functions that are immutable or stable
    (pg_proc.provolatile), in all schemas, except for those that read settings, other sessions, files, or the text of
    another query. So PostGIS works, and a function of one's own that is declared STABLE.
    """

    name, title = "postgres", "PostgreSQL"
    forbidden_write = (
        "CREATE TEMPORARY SEQUENCE chatmetrics_may_not_write",
        "DROP SEQUENCE IF EXISTS chatmetrics_may_not_write",
    )
    # A server-side cursor accepts a single statement and sends rows only as they are fetched.
    single_statement: Mapping[str, object] = MappingProxyType({"stream_results": True, "no_parameters": True})

    _VOLATILE = words(
        """
        random clock_timestamp timeofday gen_random_uuid uuidv4 uuidv7 random_normal
        """
    )
    _GRAMMAR = words(
        """
        current_time current_timestamp greatest json_array json_arrayagg json_exists json_object json_objectagg
        json_query json_scalar json_serialize json_table json_value least localtime localtimestamp merge_action
        normalize treat xmlconcat xmlelement xmlexists xmlforest xmlparse xmlpi xmlroot xmlserialize xmltable
        """
    )
    _REFUSED = re.compile(
        r"pg_(?!typeof$|size_pretty$|size_bytes$|collation_for$|column_size$|get_viewdef$).*|\w*_to_xml\w*|current_setting"
        r"|txid_.*|inet_(?:client|server)_.*|\w*(?:recv|send|_in|_out|sel)|dblink.*|crosstab.*|connectby.*|xpath_table"
        r"|\w+_validator|(?:has|row_security)_.*|lo_.*|loread|lowrite"
    )
    _ALLOWED = """
        SELECT lower(proname) FROM pg_catalog.pg_proc GROUP BY lower(proname)
        HAVING bool_and(provolatile <> 'v' AND prokind <> 'p')
    """
    _OTHERS = """
        SELECT lower(proname) FROM pg_catalog.pg_proc GROUP BY lower(proname)
        HAVING NOT bool_and(provolatile <> 'v' AND prokind <> 'p') AND lower(proname) NOT IN ('bernoulli', 'system')
    """
    _COLUMNS = """
        SELECT DISTINCT lower(a.attname) FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND a.attnum > 0
    """
    # Views and tables that show settings, other sessions, accounts, or values without their rights.
    _NAMES = re.compile(
        r"pg_(?:settings|file_settings|config|hba_file_rules|ident_file_mappings|stat\w*|locks|user_mappings?|authid|shadow"
        r"|auth_members|db_role_setting|largeobject\w*|replication\w*|subscription\w*|publication\w*|prepared_\w+|cursors"
        r"|backend_memory_contexts|shmem_allocations|foreign_server|foreign_data_wrapper|wait_events)"
    )
    # Roles with which a query could read files of the server, or start programs there.
    _POWERS = """
        SELECT CASE WHEN rolname = current_user THEN 'superuser' ELSE rolname END FROM pg_roles
        WHERE (rolname = current_user AND rolsuper) OR (pg_has_role(current_user, oid, 'USAGE') AND rolname IN
        ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program'))
        ORDER BY rolname = current_user DESC
    """
    _RIGHTS = """
        SELECT r.right || ' on ' || count(*) || ' tables, for example ' || min(c.oid::regclass::text) FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS r ("right")
        WHERE c.relkind IN ('r', 'p', 'v', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
        AND has_table_privilege(c.oid, r.right) GROUP BY r.right
        UNION ALL SELECT 'CREATE in the schema ' || nspname FROM pg_namespace
        WHERE left(nspname, 3) <> 'pg_' AND has_schema_privilege(oid, 'CREATE')
        UNION ALL SELECT r.right || ' in the database' FROM unnest(ARRAY['CREATE', 'TEMPORARY']) AS r ("right")
        WHERE has_database_privilege(current_database(), r.right)
        UNION ALL SELECT a.name FROM pg_roles CROSS JOIN LATERAL (VALUES ('CREATEDB', rolcreatedb),
        ('CREATEROLE', rolcreaterole), ('REPLICATION', rolreplication), ('BYPASSRLS', rolbypassrls)) AS a (name, given)
        WHERE rolname = current_user AND a.given
    """
    # By SQLSTATE or its prefix (PostgreSQL's documentation, appendix A).
    _FAILURES: Mapping[str, FailureMode] = MappingProxyType(
        {
            "42601": FailureMode.DOES_NOT_PARSE,
            "42P01": FailureMode.UNKNOWN_NAME,
            "42703": FailureMode.UNKNOWN_NAME,
            "57014": FailureMode.TIMED_OUT,
            "25006": FailureMode.REFUSED,
            "42501": FailureMode.REFUSED,
            "53": FailureMode.OVER_MEMORY,
            "54": FailureMode.OVER_MEMORY,
        }
    )

    def prepare(self, engine: sqlalchemy.Engine) -> None:
        """Read what Python's types cannot hold as text: dates before Christ, `infinity`, and intervals of months."""
        sqlalchemy.event.listen(engine, "connect", _read_all_values)

    def begin(self, connection: sqlalchemy.Connection, seconds: float, snapshot: str = "") -> None:
        """Begin a transaction; the server's time limit starts again at each FETCH, so it is not the only one."""
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        if snapshot:
            connection.exec_driver_sql(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, round(1000 * seconds))}")
        # As sqlglot reads strings, and as `values.py` writes dates.
        connection.exec_driver_sql("SET LOCAL standard_conforming_strings = on")
        connection.exec_driver_sql("SET LOCAL datestyle = 'ISO'")

    @contextmanager
    def snapshot(self, engine: sqlalchemy.Engine) -> Iterator[Snapshot]:
        """Export a snapshot, which other transactions import while this one lasts."""
        with engine.connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            name = connection.exec_driver_sql("SELECT pg_catalog.pg_export_snapshot()").scalar()
            yield str(name), None

    def powers(self, connection: sqlalchemy.Connection) -> list[str]:
        """Superuser, or a role for files and programs."""
        return [str(role) for (role,) in connection.exec_driver_sql(self._POWERS)]

    def beyond_reading(self, connection: sqlalchemy.Connection) -> list[str]:
        """Rights on tables, schemas and the database, and attributes of the role."""
        return [str(right) for (right,) in connection.exec_driver_sql(self._RIGHTS)]

    def rules(self, connection: sqlalchemy.Connection) -> Rules:
        """The functions that are declared to compute only, and those of the grammar; no views of the server's state."""
        declared = {str(name) for (name,) in connection.exec_driver_sql(self._ALLOWED)}
        others = {str(name) for (name,) in connection.exec_driver_sql(self._OTHERS)}
        columns = {str(name) for (name,) in connection.exec_driver_sql(self._COLUMNS)}
        refused = {name for name in declared if self._REFUSED.fullmatch(name)}
        others |= refused
        return Rules(
            functions=frozenset(declared - refused) | self._VOLATILE | self._GRAMMAR | SYNTAX,
            other_functions=frozenset(others),
            # A field that is called like a function calls it, unless it is a column.
            fields=frozenset(others - columns - self._VOLATILE),
            names=self._NAMES,
        )

    def canceler(self, engine: sqlalchemy.Engine, connection: sqlalchemy.Connection) -> Callable[[], None]:
        """psycopg's `cancel` blocks all threads until the server has answered; `cancel_safe` does not."""
        driver = connection.connection.dbapi_connection
        cancel: Callable[[], None] = getattr(driver, "cancel_safe", None) or driver.cancel  # type: ignore[union-attr]
        return cancel

    def failure_of(self, error: BaseException | None) -> Result:
        """By SQLSTATE; without the statement that the driver has put around the query."""
        state = str(getattr(error, "sqlstate", "") or "")
        modes = (mode for begin, mode in self._FAILURES.items() if state.startswith(begin))
        message = re.sub(r"DECLARE \"\w+\" CURSOR FOR ", "", one_line(error))
        return Result(failure=next(modes, FailureMode.EXECUTION_ERROR), message=message)


class MySQL:
    """MySQL 8 and MariaDB 10.6 and newer. MySQL itself is untested: no test here can install it."""

    name = "mysql"
    # Creating a table commits implicitly, and so gets through where only the transaction is read-only.
    forbidden_write = (
        "CREATE TABLE chatmetrics_may_not_write (id int)",
        "DROP TABLE IF EXISTS chatmetrics_may_not_write",
    )
    single_statement: Mapping[str, object] = MappingProxyType({"stream_results": True, "no_parameters": True})

    # MariaDB 10.11's information_schema.SQL_FUNCTIONS and MySQL 8.4's manual, chapter 14, without those for files,
    # locks, sleeping, replication, encryption keys and the state of the session.
    _FUNCTIONS = words(
        """
        abs acos adddate add_months addtime aes_decrypt aes_encrypt any_value ascii asin atan atan2 avg bin
        bin_to_uuid bit_and bit_count bit_length bit_or bit_xor ceil ceiling char character_length char_length chr
        coercibility collation column_exists column_get column_json column_list compress concat concat_ws conv convert
        convert_tz cos cot crc32 crc32c cume_dist curdate current_date current_time current_timestamp curtime database
        date date_add datediff date_format date_sub day dayname dayofmonth dayofweek dayofyear default degrees
        dense_rank elt exp export_set extractvalue field find_in_set first_value floor format format_bytes from_base64
        from_days from_unixtime geometrycollection get_format greatest group_concat hex hour if ifnull inet6_aton
        inet6_ntoa inet_aton inet_ntoa insert instr is_ipv4 is_ipv4_compat is_ipv4_mapped is_ipv6 isnull is_uuid
        json_array json_arrayagg json_array_append json_array_insert json_compact json_contains json_contains_path
        json_depth json_detailed json_equals json_exists json_extract json_insert json_keys json_length json_loose
        json_merge json_merge_patch json_merge_preserve json_normalize json_object json_objectagg json_overlaps
        json_pretty json_query json_quote json_remove json_replace json_search json_set json_table json_type
        json_unquote json_valid json_value lag last_day last_value lcase lead least left length lengthb ln localtime
        localtimestamp locate log log10 log2 lower lpad ltrim makedate make_set maketime max md5 median microsecond
        mid min minute mod month monthname natural_sort_key now nth_value ntile nvl nvl2 oct octet_length ord
        percentile_cont percentile_disc percent_rank period_add period_diff pi point pow power quarter quote radians
        rand rank regexp_instr regexp_like regexp_replace regexp_substr repeat replace reverse right round row_number
        rpad rtrim schema second sec_to_time sha sformat sha1 sha2 sign sin soundex space sqrt std stddev stddev_pop
        stddev_samp strcmp str_to_date subdate substr substring_index subtime sum sysdate tan time timediff
        time_format timestamp timestampadd timestampdiff time_to_sec to_base64 to_char to_days to_seconds truncate
        ucase uncompress uncompressed_length unhex unix_timestamp updatexml upper user utc_date utc_time utc_timestamp
        uuid uuid_to_bin variance var_pop var_samp version week weekday weekofyear weight_string year yearweek
        st_area st_asbinary st_asgeojson st_astext st_aswkb st_aswkt st_boundary st_buffer st_centroid st_contains
        st_convexhull st_crosses st_difference st_dimension st_disjoint st_distance st_distance_sphere st_endpoint
        st_envelope st_equals st_exteriorring st_geomfromgeojson st_geomfromtext st_geomfromwkb st_geometryn
        st_geometrytype st_interiorringn st_intersection st_intersects st_isclosed st_isempty st_issimple st_isvalid
        st_latitude st_length st_longitude st_numgeometries st_numinteriorrings st_numpoints st_overlaps
        st_pointfromtext st_pointn st_srid st_startpoint st_symdifference st_touches st_transform st_union st_within
        st_x st_y
        """
    )
    _QUALIFIERS = words("information_schema mysql performance_schema sys")
    # With these, strings and names are not quoted as sqlglot reads them.
    _OTHER_QUOTES = frozenset(
        {"ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "ANSI", "DB2", "MAXDB", "MSSQL", "ORACLE", "POSTGRESQL"}
    )
    # By the server's error number (MySQL's manual, "Server Error Message Reference"; MariaDB's 1969).
    _FAILURES: Mapping[int, FailureMode] = MappingProxyType(
        {
            **dict.fromkeys((1064, 1149), FailureMode.DOES_NOT_PARSE),
            **dict.fromkeys((1051, 1054, 1109, 1146, 1049, 1305), FailureMode.UNKNOWN_NAME),
            **dict.fromkeys((1317, 1969, 3024), FailureMode.TIMED_OUT),
            **dict.fromkeys((1044, 1142, 1143, 1227, 1290, 1370, 1792, 3554), FailureMode.REFUSED),
            **dict.fromkeys((1037, 1038, 1041, 1114, 1135, 1153, 1301, 3170), FailureMode.OVER_MEMORY),
        }
    )

    def __init__(self, is_mariadb: bool, sql_mode: str) -> None:
        self._is_mariadb = is_mariadb
        self.title = "MariaDB" if is_mariadb else "MySQL"
        self._mode = ",".join(mode for mode in sql_mode.split(",") if mode not in self._OTHER_QUOTES)

    def prepare(self, engine: sqlalchemy.Engine) -> None:
        """Read BIT as a number."""
        sqlalchemy.event.listen(engine, "do_connect", _read_bits)
        engine.dispose()  # of the connection that asked for the version

    def begin(self, connection: sqlalchemy.Connection, seconds: float, snapshot: str = "") -> None:
        """Begin a transaction. Only the session's mode also refuses statements that commit implicitly, such as DDL."""
        if self._is_mariadb:
            # Otherwise a recursive query ends without an error after 1,000 rounds.
            own = [f"max_statement_time = {seconds:.3f}", "max_recursive_iterations = 4294967295"]
        else:
            own = [f"max_execution_time = {max(1, round(seconds * 1000))}", "cte_max_recursion_depth = 4294967295"]
        # Four decimals more than a quotient's operands have are too few to compare AVG(x) with SUM(x) / COUNT(x).
        values = [f"sql_mode = '{self._mode}'", "div_precision_increment = 12"]
        transaction = ["TRANSACTION READ ONLY", "TRANSACTION ISOLATION LEVEL REPEATABLE READ"]
        for setting in (*own, *values, *transaction):
            connection.exec_driver_sql(f"SET SESSION {setting}")
        connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT")

    @contextmanager
    def snapshot(self, engine: sqlalchemy.Engine) -> Iterator[Snapshot]:
        """A connection whose transaction sees the state of its begin; a snapshot has no name."""
        with engine.connect() as connection:
            yield "", connection

    def powers(self, connection: sqlalchemy.Connection) -> list[str]:
        """Rights on the whole server with which a query could read or write files, or end the read-only mode."""
        grants = [str(row[0]).upper() for row in connection.exec_driver_sql("SHOW GRANTS")]
        server = [grant.partition(" ON ")[0] for grant in grants if " ON *.* " in grant]
        listed = {right.strip() for grant in server for right in grant.removeprefix("GRANT ").split(",")}
        return sorted(
            listed & {"ALL PRIVILEGES", "FILE", "SUPER", "READ_ONLY ADMIN", "SHUTDOWN", "SYSTEM_VARIABLES_ADMIN"}
        )

    def beyond_reading(self, connection: sqlalchemy.Connection) -> list[str]:
        """Granted rights other than to read and to see definitions."""
        reads = {"USAGE", "SELECT", "SHOW VIEW", "SHOW DATABASES"}
        found = []
        for (grant,) in connection.exec_driver_sql("SHOW GRANTS"):
            rights, on, rest = str(grant).removeprefix("GRANT ").partition(" ON ")
            others = [right for right in rights.split(", ") if right.partition(" (")[0].upper() not in reads]
            if on and others:
                found.append(f"{', '.join(others)} on {rest.partition(' TO ')[0]}")
        return found

    def rules(self, connection: sqlalchemy.Connection) -> Rules:
        """The list above, and the grammar; no tables of the server itself."""
        return Rules(self._FUNCTIONS | SYNTAX, qualifiers=self._QUALIFIERS)

    def canceler(self, engine: sqlalchemy.Engine, connection: sqlalchemy.Connection) -> Callable[[], None]:
        """KILL QUERY on a second connection; the connection to cancel is busy."""
        number = connection.connection.dbapi_connection.thread_id()  # type: ignore[union-attr]
        arguments, options = engine.dialect.create_connect_args(engine.url)

        def cancel() -> None:
            second = engine.dialect.connect(*arguments, **options)
            try:
                second.cursor().execute(f"KILL QUERY {int(number)}")
            finally:
                second.close()

        return cancel

    def failure_of(self, error: BaseException | None) -> Result:
        """By error number."""
        number, *texts = error.args if error is not None and error.args else (0,)
        message = one_line(texts[0] if texts else error)
        return Result(failure=self._FAILURES.get(number, FailureMode.EXECUTION_ERROR), message=message)


def dialect_of(engine: sqlalchemy.Engine) -> ServerDialect:
    """The dialect of a server, which is asked for its name: MariaDB is reached with MySQL's drivers too.

    Raises:
        SQLAlchemyError: the server cannot be reached.
    """
    if engine.dialect.name == "postgresql":
        return PostgreSQL()
    with engine.connect() as connection:
        version, mode = connection.exec_driver_sql("SELECT version(), @@GLOBAL.sql_mode").one()
    return MySQL("mariadb" in str(version).lower(), str(mode))


def _read_bits(_: object, __: object, ___: object, options: dict[str, Any]) -> None:
    from pymysql.constants import FIELD_TYPE
    from pymysql.converters import conversions

    options["conv"] = {**conversions, FIELD_TYPE.BIT: int.from_bytes}


def _read_all_values(connection: Any, _: object) -> None:
    """Register loaders with a psycopg connection (its documentation, "Example: handling infinity date")."""
    # Imported here because MySQL does not need psycopg.
    import psycopg
    from psycopg.types import datetime, string

    def or_text(loader: type[Any]) -> type[Any]:
        class OrText(loader):  # type: ignore[misc]
            def load(self, data: Any) -> Any:
                try:
                    return super().load(data)
                except psycopg.DataError:
                    return bytes(data).decode()

        return OrText

    class WithoutPadding(string.TextLoader):
        def load(self, data: Any) -> Any:
            text = super().load(data)
            return text.rstrip(" ") if isinstance(text, str) else text

    adapters = connection.adapters
    for name, loader in (
        ("date", datetime.DateLoader),
        ("timestamp", datetime.TimestampLoader),
        ("timestamptz", datetime.TimestamptzLoader),
        ("time", datetime.TimeLoader),
        ("timetz", datetime.TimetzLoader),
    ):
        adapters.register_loader(name, or_text(loader))
    adapters.register_loader("interval", string.TextLoader)
    adapters.register_loader("bpchar", WithoutPadding)
