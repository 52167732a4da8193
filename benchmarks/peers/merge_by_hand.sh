# psql: the changed rows by COPY into a temporary table, deduped, INSERT … ON CONFLICT, one transaction
set -e -o pipefail
names=$(psql -Atq "$SOURCE_URL" -c "SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute
    WHERE attrelid = 'changing'::regclass AND attnum > 0 AND NOT attisdropped")
sets=$(psql -Atq "$SOURCE_URL" -c "SELECT string_agg(attname || ' = excluded.' || attname, ', ' ORDER BY attnum)
    FROM pg_attribute WHERE attrelid = 'changing'::regclass AND attnum > 0 AND attname <> 'id'")
psql -q "$SOURCE_URL" -c "COPY (SELECT $names FROM changing WHERE updated_at > '$SINCE') TO STDOUT (FORMAT binary)" |
    psql -q -v ON_ERROR_STOP=1 --single-transaction "$TARGET_URL" \
        -c "CREATE TEMP TABLE changed ON COMMIT DROP AS SELECT $names FROM by_hand LIMIT 0" \
        -c "COPY changed FROM STDIN (FORMAT binary)" \
        -c "INSERT INTO by_hand ($names)
            SELECT DISTINCT ON (id) $names FROM changed ORDER BY id, updated_at DESC
            ON CONFLICT (id) DO UPDATE SET $sets"
