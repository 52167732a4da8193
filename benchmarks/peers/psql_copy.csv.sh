# psql copy into a ready table (the limit)
set -e
columns=$(psql -Atq "$SOURCE_URL" -c "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', '
    ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attnum > 0")
psql -q "$TARGET_URL" -c "CREATE TABLE orders ($columns)" -c "\\copy orders FROM '$CSV' (FORMAT csv, HEADER)"
