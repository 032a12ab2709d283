-- claim: gives the caller the fenced, leased right to send a queued job.
-- KEYS  job, due, counts
-- ARGV  id, lease_ms, the consumer's name as JSON
-- Returns {'claimed', fence, attempt, created, now, body, recipients} | {'unknown'}
--         | {status} when not queued

local job = redis.call('HMGET', KEYS[1],
  'status', 'fence', 'attempt', 'created', 'body', 'recipients', 'events')
local status = job[1]
if not status then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {'unknown'}
end
if status ~= 'queued' then
  return {status}
end
local now = now_ms()
local fence = (job[2] or 0) + 1
local attempt = (job[3] or 0) + 1
local events = with_event(job[7], now,
  string.format('"event":"sending","attempt":%d,"consumer":%s', attempt, ARGV[3]))
move(KEYS[3], 'queued', 'sending')
redis.call('HSET', KEYS[1], 'status', 'sending', 'updated', now,
  'fence', fence, 'attempt', attempt, 'phase', '', 'events', events)
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
return {'claimed', fence, attempt, job[4], now, job[5], job[6]}
