-- The table every tool moves: 14 columns of eight types, NULLs in two of them, about 140 bytes a row as CSV.
-- Every value follows from the row's number, so the same size is the same data everywhere.
-- The number of rows: SET bench.rows = 1000000
CREATE TABLE orders AS
SELECT
    i::bigint                                                              AS id,
    (i * 7919 % 100000)::integer                                           AS customer_id,
    (i % 20)::integer                                                      AS store_id,
    (i * 31 % 1000000 / 100.0)::numeric(12,2)                              AS total,
    (i % 1000 / 1000.0)::numeric(6,3)                                      AS tax,
    CASE WHEN i % 5 <> 0 THEN sqrt(i::float8) - floor(sqrt(i::float8)) END AS score,
    i % 3 = 0                                                              AS paid,
    date '2020-01-01' + (i % 2000)::integer                                AS order_date,
    timestamptz '2020-01-01 00:00:00+00' + i * interval '13.001 s'         AS created_at,
    CASE WHEN i % 10 >= 3 THEN timestamp '2021-01-01' + i * interval '7.5 s' END AS shipped_at,
    (ARRAY['new', 'paid', 'shipped', 'cancelled'])[1 + i % 4]              AS status,
    md5(i::text)                                                           AS ref,
    'Customer note number ' || i || ' with some text'                      AS note,
    'c' || i % 50                                                          AS country
FROM generate_series(1, current_setting('bench.rows')::bigint) AS i
