-- probe: proves that the ledger can be written; refused by a full or read-only server.
-- KEYS  probe
-- Returns server time in Unix milliseconds

local now = now_ms()
redis.call('SET', KEYS[1], now, 'PX', 60000)
return now
