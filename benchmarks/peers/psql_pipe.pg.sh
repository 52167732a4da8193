# psql to psql, binary COPY (the limit)
set -e
columns=$(psql -Atq "$SOURCE_URL" -c "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', '
    ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attnum > 0")
psql -q "$TARGET_URL" -c "CREATE TABLE orders ($columns)"
set -o pipefail
psql -q "$SOURCE_URL" -c "COPY orders TO STDOUT (FORMAT binary)" |
    psql -q "$TARGET_URL" -c "COPY orders FROM STDIN (FORMAT binary)"
