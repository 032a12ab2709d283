-- census: how the ledger stands.
-- KEYS  due, counts
-- Returns {counts by status as fields and values, ms by which the oldest due job is overdue}

local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local overdue = 0
if first[2] then
  overdue = math.max(0, now_ms() - first[2])
end
return {redis.call('HGETALL', KEYS[2]), overdue}
