-- resolve: a person decides what became of an uncertain job.
-- KEYS  job, due, counts
-- ARGV  id, decision (sent | resend), retention_ms
-- Returns 'resolved' | 'unknown' | the status when that is not uncertain

local job = redis.call('HMGET', KEYS[1], 'status', 'recipients', 'events')
if not job[1] then
  return 'unknown'
end
if job[1] ~= 'uncertain' then
  return job[1]
end
local now = now_ms()
local settled, target = 'sent', 'sent'
if ARGV[2] == 'resend' then
  settled, target = 'deferred', 'queued'
end
local recipients = cjson.decode(job[2])
for _, recipient in ipairs(recipients) do
  if recipient.status == 'uncertain' then
    recipient.status = settled
  elseif recipient.status == 'failed' and target == 'sent' then
    target = 'failed'
  end
end
move(KEYS[3], 'uncertain', target)
redis.call('HSET', KEYS[1], 'status', target, 'updated', now, 'recipients', cjson.encode(recipients),
  'events', with_event(job[3], now, string.format('"event":"resolved","decision":"%s"', ARGV[2])))
if target == 'queued' then
  redis.call('PERSIST', KEYS[1])
  redis.call('ZADD', KEYS[2], now, ARGV[1])
else
  redis.call('HDEL', KEYS[1], 'body')
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 'resolved'
