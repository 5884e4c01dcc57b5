"""Names of tables and columns as SQL identifiers: the one place that decides when a name is quoted."""

import re

# All keywords of SQLite (sqlite.org/lang_keywords.html), and true and false. Many work as names without quotes, but
# which ones depends on the version and on the place in a query: `SELECT current_date FROM day` returns today's date.
_ALL = """
abort action add after all alter always analyze and as asc attach autoincrement before begin between by cascade case
cast check collate column commit conflict constraint create cross current current_date current_time
current_timestamp database default deferrable deferred delete desc detach distinct do drop each else end escape
except exclude exclusive exists explain fail filter first following for foreign from full generated glob group
groups having if ignore immediate in index indexed initially inner insert instead intersect into is isnull join key
last left like limit match materialized natural no not nothing notnull null nulls of offset on or order others outer
over partition plan pragma preceding primary query raise range recursive references regexp reindex release rename
replace restrict returning right rollback row rows savepoint select set table temp temporary then ties to
transaction trigger unbounded union unique update using vacuum values view virtual when where window with without
true false
"""
KEYWORDS = frozenset(_ALL.split())
# What other dialects reserve in addition: PostgreSQL (appendix C of its documentation) and DuckDB (duckdb_keywords()),
# MySQL and MariaDB (as SQLAlchemy lists them).
_POSTGRES = """
analyse anti any array asof asymmetric at authorization binary both collation columns concurrently current_catalog
current_role current_schema current_user describe fetch freeze grant ilike lambda lateral leading localtime
localtimestamp map only overlaps pivot pivot_longer pivot_wider placing positional qualify semi session_user show
similar some struct summarize symmetric tablesample trailing try_cast tuple unpack unpivot user variadic verbose
"""
_MYSQL = """
accessible admin array asensitive bigint binary blob body both call change char character condition continue convert
cube cume_dist current_role current_user cursor databases day_hour day_microsecond day_minute day_second dec decimal
declare delayed dense_rank describe deterministic distinctrow div do_domain_ids double dual elseif elsif empty
enclosed escaped exit fetch first_value float float4 float8 force fulltext function general get get_master_public_key
goto grant grouping high_priority history hour_microsecond hour_minute hour_second ignore_domain_ids ignore_server_ids
infile inout insensitive int int1 int2 int3 int4 int8 integer interval io_after_gtids io_before_gtids iterate
json_table keys kill lag last_value lateral lead leading leave linear lines load localtime localtimestamp lock long
longblob longtext loop low_priority master_bind master_heartbeat_period master_ssl_verify_server_cert maxvalue
mediumblob mediumint mediumtext member middleint minute_microsecond minute_second mod modifies no_write_to_binlog
nth_value ntile numeric optimize optimizer_costs option optionally out outfile package page_checksum parallel
parse_gcol_expr parse_vcol_expr percent_rank period persist persist_only position precision procedure purge qualify
rank read read_write reads real ref_system_id repeat require resignal return revoke rlike role row_number rowtype
schema schemas second_microsecond sensitive separator show signal slow smallint spatial specific sql sql_after_gtids
sql_before_gtids sql_big_result sql_calc_found_rows sql_small_result sqlexception sqlstate sqlwarning ssl starting
stats_auto_recalc stats_persistent stats_sample_pages stored straight_join system system_time terminated tinyblob
tinyint tinytext trailing undo unlock unsigned usage use utc_date utc_time utc_timestamp varbinary varchar
varcharacter varying versioning while write xor year_month zerofill
"""
_KEYWORDS_OF = {
    "sqlite": KEYWORDS,
    "postgres": KEYWORDS.union(_POSTGRES.split()),
    "duckdb": KEYWORDS.union(_POSTGRES.split()),
    "mysql": KEYWORDS.union(_MYSQL.split()),
}
_PLAIN_NAME = re.compile(r"[^\W\d]\w*")
_WORDS = re.compile(r"\w+(?: \w+)+")


def quoted(name: str, dialect: str = "sqlite") -> str:
    """A name as a quoted identifier of a dialect, as sqlglot names it."""
    mark = "`" if dialect == "mysql" else '"'
    return mark + name.replace(mark, 2 * mark) + mark


def identifier(name: str, dialect: str = "sqlite") -> str:
    """A name as a query must spell it: quoted if it is a keyword or contains anything but letters, digits and `_`."""
    return quoted(name, dialect) if needs_quotes(name, dialect) else name


def needs_quotes(name: str, dialect: str = "sqlite") -> bool:
    """Whether a name is a keyword or contains anything but letters, digits and `_`; for PostgreSQL, or a capital."""
    is_folded = dialect == "postgres" and name != name.lower()
    return is_folded or not _PLAIN_NAME.fullmatch(name) or name.lower() in _KEYWORDS_OF.get(dialect, KEYWORDS)


def m_schema_name(name: str, dialect: str = "sqlite") -> str:
    """A name in M-Schema, which shows words with spaces between them as they are; otherwise like `identifier`."""
    return name if _WORDS.fullmatch(name) else identifier(name, dialect)
